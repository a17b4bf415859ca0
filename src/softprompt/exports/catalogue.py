"""The forms by name, and the one function that writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from softprompt.exports.source import Source, written_apart


class Form(Protocol):
    """A module with two functions.

    write  writes the prompts into an empty folder. Raises ValueError, with what to do instead, for prompts that the form
           cannot hold
    check  asks what was written, in transformers, and returns a sentence for each difference from the prompts themselves
    """

    def write(self, prompts: Mapping[str, Source], folder: Path) -> Mapping[str, Any]: ...

    def check(self, prompts: Mapping[str, Source], folder: Path) -> list[str]: ...


@dataclass(frozen=True)
class Line:
    """module: where the form is. what: for people."""

    module: str
    what: str


FORMS = {
    "checkpoint": Line(
        "softprompt.exports.checkpoint", "an ordinary checkpoint in which each prompt is a run of tokens"
    ),
    "prompt-embeds": Line("softprompt.exports.prompt_embeds", "vectors that vLLM takes in requests"),
    "peft": Line("softprompt.exports.peft", "PEFT's folder"),
}


def export(
    prompts: Mapping[str, Source],
    form: str,
    folder: str | Path,
    *,
    overwrite: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Write tuned prompts for another server, whole or not at all, and describe what was written.

    prompts    by name, all on one backbone
    form       a name of FORMS
    folder     new, or empty; with `overwrite` what stands there is replaced
    check      also ask what was written, in transformers, before it is put in place

    Raises ValueError for an unknown form, for prompts that the form cannot hold, and where the check finds a difference;
    FileExistsError for a folder that is not empty.
    """
    if form not in FORMS:
        raise ValueError(f"there is no form {form!r}; there are {', '.join(FORMS)}")
    if not prompts:
        raise ValueError("there is no prompt to export: give one or more")
    if len({id(one.backbone.model) for one in prompts.values()}) > 1:
        raise ValueError(
            "the prompts are on several backbones, and an export has one: load them on the same object"
        )
    chosen: Any = import_module(FORMS[form].module)
    with written_apart(Path(folder), overwrite=overwrite) as place:
        told = dict(chosen.write(prompts, place))
        if check and (found := chosen.check(prompts, place)):
            raise ValueError("what was written answers otherwise than the prompts: " + "; ".join(found))
    return {"form": form, "folder": str(folder), "prompts": list(prompts), "checked": check, **told}
