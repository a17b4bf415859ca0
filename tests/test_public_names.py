"""The public names: one list, in the stub, which `import softprompt` and type checkers read."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import softprompt as sp

STUB = Path(sp.__file__).with_suffix(".pyi")


def test_dir_lists_the_names_of_the_stub_and_each_is_there() -> None:
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    named = [alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert dir(sp) == sorted(sp.__all__) == sorted(str(name) for name in named)
    assert len(set(named)) == len(named)
    for name in sp.__all__:
        assert getattr(sp, name) is not None


def test_an_unknown_name_is_an_error_like_that_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"^module 'softprompt' has no attribute 'PromptTunning'$"):
        sp.PromptTunning  # type: ignore[attr-defined]  # noqa: B018


def printed(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.slow
def test_a_name_is_not_hidden_by_the_module_of_the_same_name() -> None:
    code = "import softprompt.attach; import softprompt as sp; print(sp.attach.__name__, callable(sp.attach))"
    assert printed(code) == "attach True"


def test_importing_the_library_imports_neither_torch_nor_a_room() -> None:
    heavy = "name in ('torch', 'transformers', 'numpy') or name.startswith('softprompt.') and name != 'softprompt.deprecated'"
    assert printed(f"import sys, softprompt; print([name for name in sys.modules if {heavy}])") == "[]"
