"""Methods by name."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from softprompt.prompts.base import Method


@cache
def methods() -> dict[str, type[Method]]:
    """Every method of the library by its name, those of softprompt.prompts and of softprompt.baselines."""
    import softprompt.baselines as baselines
    import softprompt.prompts as prompts

    found: dict[str, type[Method]] = {}
    for package in (prompts, baselines):
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(info.name)
            for value in vars(module).values():
                if (
                    isinstance(value, type)
                    and issubclass(value, Method)
                    and value.__module__ == info.name
                    and hasattr(value, "name")
                ):
                    found[value.name] = value
    return found
