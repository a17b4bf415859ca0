"""softprompt export: write saved prompts for other servers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli._console import reporting
from softprompt.cli._options import AsJson, BackboneName, Debug, Device, Dtype, open_prompt


def export(
    prompts: Annotated[list[Path], typer.Argument(help="Folders with saved prompts, all on one backbone.")],
    to: Annotated[str, typer.Option(help="checkpoint, prompt-embeds or peft; docs/export.md explains them.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Ask what was written, in transformers, before it is put in place."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what stands in the folder.")
    ] = False,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write saved prompts for other servers: vLLM, any engine of transformers' models, PEFT."""
    with reporting(as_json, debug) as report:
        from softprompt.exports import FORMS
        from softprompt.exports import export as write
        from softprompt.tuned import load

        if to not in FORMS:
            raise ValueError(f"--to {to}: expected {', '.join(FORMS)}")
        names = [_name(path) for path in prompts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two prompts are called {twice!r}: rename one of their folders")
        first = open_prompt(prompts[0], backbone, dtype, device, None)
        opened = {names[0]: first}
        for name, path in zip(names[1:], prompts[1:], strict=True):
            opened[name] = load(path if (path / "prompt.json").is_file() else path / "prompt", first.backbone)
        told = write(opened, to, output, overwrite=overwrite, check=check)
        report.values.update(told)
        said = ", and it answers as the prompts do" if check else ""
        report.human.print(f"{', '.join(names)} as {to} in {output}{said}", markup=False, highlight=False)


def _name(path: Path) -> str:
    own = path.resolve()
    return own.parent.name if own.name == "prompt" else own.name
