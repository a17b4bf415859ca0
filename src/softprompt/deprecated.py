"""Old import paths that the documentation named still work, with a DeprecationWarning.

The next version removes this file, the call of `install`, and the calls of `moved_names`.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "softprompt.carriers": "softprompt.zoo",
    "softprompt.image_inspection": "softprompt.inspection.images",
    "softprompt.nearest": "softprompt.inspection.nearest",
    "softprompt.plots": "softprompt.inspection.plots",
}
"""Old module -> new module; the modules of a package moved with it."""

NAMES = {
    "softprompt.inspection.PromptReport": "softprompt.inspection.virtual_tokens.PromptReport",
    "softprompt.inspection.TokenReport": "softprompt.inspection.virtual_tokens.TokenReport",
    "softprompt.inspection.Word": "softprompt.inspection.virtual_tokens.Word",
    "softprompt.inspection.drift_in_words": "softprompt.inspection.virtual_tokens.drift_in_words",
    "softprompt.inspection.initial_tokens": "softprompt.inspection.virtual_tokens.initial_tokens",
    "softprompt.inspection.inspect_prompt": "softprompt.inspection.virtual_tokens.inspect_prompt",
    "softprompt.inspection.prompt_names": "softprompt.inspection.virtual_tokens.prompt_names",
    "softprompt.prompts.methods": "softprompt.catalogue.methods",
    "softprompt.store.PeftPrompt": "softprompt.exchange.PeftPrompt",
    "softprompt.store.TaskType": "softprompt.exchange.TaskType",
    "softprompt.store.read_peft": "softprompt.exchange.read_peft",
    "softprompt.store.write_peft": "softprompt.exchange.write_peft",
    "softprompt.store.write_peft_prefix": "softprompt.exchange.write_peft_prefix",
    "softprompt.zoo.CARRIERS": "softprompt.zoo.BUILT_INS",
    "softprompt.zoo.Carrier": "softprompt.zoo.BuiltIn",
    "softprompt.zoo.CarrierError": "softprompt.zoo.FetchError",
    "softprompt.zoo.fetch_carrier": "softprompt.zoo.fetch_built_in",
}
"""Old name -> new name, for packages that still exist. softprompt.carriers is softprompt.zoo, including its old names."""


def moved_names(package: str, load: Callable[[str], Any] | None = None) -> Callable[[str], Any]:
    """The `__getattr__` of a package that had some of NAMES. `load` gives what else it has lazily."""

    def get(name: str) -> Any:
        old = f"{package}.{name}"
        if new := NAMES.get(old):
            _warn(old, new)
            module, _, attribute = new.rpartition(".")
            return getattr(importlib.import_module(module), attribute)
        if load is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load(name)

    return get


class MovedModules:
    """A finder and loader for sys.meta_path, by which an old path gives the same module as the new one."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        moved = ".".join(name.split(".")[:2]) in MODULES
        return ModuleSpec(name, MovedModules) if moved else None  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Python's own empty module, which `exec_module` replaces."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        old = module.__name__
        package = ".".join(old.split(".")[:2])
        new = MODULES[package] + old.removeprefix(package)
        if old == package:  # which is imported, and warned of, before any module below it
            _warn(old, new)
        sys.modules[old] = importlib.import_module(new)  # Python hands out what stands here afterwards


def install() -> None:
    """Install the finder in front: Python's own would find the modules of a moved package and load them twice."""
    if MovedModules not in sys.meta_path:
        sys.meta_path.insert(0, MovedModules)


def _warn(old: str, new: str) -> None:
    """Warn at the user's line, two calls up; Python skips the frames of its import system."""
    warnings.warn(
        f"{old} is {new} now; the old path goes away with the next version", DeprecationWarning, stacklevel=3
    )
