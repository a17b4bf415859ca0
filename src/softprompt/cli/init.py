"""softprompt init: look at data, and write a config that trains as it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli._console import reporting
from softprompt.cli._options import AsJson, Debug


def init(
    data: Annotated[
        str,
        typer.Argument(
            help="A .csv, .tsv, .jsonl, .json or .parquet file, a folder of images, a built-in or a hub data set."
        ),
    ],
    text: Annotated[
        list[str] | None,
        typer.Option(help="Column with the text; twice for two columns.", show_default="inferred"),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column with the right answer.", show_default="inferred")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="classification or regression, where numbers could be either.", show_default="inferred"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="A built-in name, a folder or a hub id.", show_default="a small built-in one"),
    ] = None,
    method: Annotated[str | None, typer.Option(help="Name of a method.", show_default="inferred")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="Encoding of a text file, e.g. cp1252.", show_default="utf-8")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The config to write.", show_default="NAME OF THE DATA.yaml"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a config that is there.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Look at data, say what was inferred, and write a config that trains as it is."""
    with reporting(as_json, debug) as report:
        from softprompt.beginning import Wishes, propose, written
        from softprompt.files import write_text
        from softprompt.fitting.run_config import parse_config, read_config

        config = output or Path(f"{_name(data)}.yaml")
        if config.exists() and not overwrite:
            raise FileExistsError(f"{config} exists: give --overwrite, or another file with --output")
        if task not in (None, "classification", "regression"):
            raise ValueError(f"--task is {task!r}, expected classification or regression")
        proposal = propose(data, Wishes(text, label, task, backbone, method, encoding))
        parse_config(proposal.config)  # what is wrong with a wish comes to light before anything is written
        command = shlex.join(["softprompt", "train", str(config)])
        write_text(config, written(proposal, data, command))
        read_config(config)
        for decision in proposal.decisions:
            report.human.print(
                f"{decision.key}: {decision.said}", highlight=False, markup=False, soft_wrap=True
            )
        for doubt in proposal.doubts:
            report.warn(doubt)
        report.human.print(
            f"wrote {config}; to train: {command}", highlight=False, markup=False, soft_wrap=True
        )
        report.values.update(
            {
                "config": str(config),
                "values": proposal.config,
                "decisions": [{"key": d.key, "said": d.said} for d in proposal.decisions],
            }
        )


def _name(data: str) -> str:
    """The name of a file or folder without its suffixes, or the last part of a hub id."""
    name = (
        Path(data.partition(":")[0]).resolve().name
        if Path(data).exists()
        else data.partition(":")[0].split("/")[-1]
    )
    return name.split(".")[0] or "config"
