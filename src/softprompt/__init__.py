"""softprompt tunes small prompts for large frozen models.

Three nouns and a verb: a backbone, a task and a method go into `fit`, a TunedPrompt comes out.
"""

from typing import Any

import lazy_loader

from softprompt import deprecated as _deprecated

_deprecated.install()

# The names stand in __init__.pyi. Each is imported at its first use: torch and transformers take seconds, and the
# command line's --help needs neither.
_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load(name)
