"""softprompt inspect: show the words near a prompt's virtual tokens, and how a prompt for images labels images."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import AsJson, BackboneName, Debug, Device, Dtype, Labels, PromptDir, open_prompt
from softprompt.data.image_folders import image_paths
from softprompt.files import write_text

if TYPE_CHECKING:
    from softprompt.inspection.virtual_tokens import PromptReport, Word


def inspect(
    prompt: PromptDir,
    images: Annotated[
        list[str] | None,
        typer.Argument(help="Image files and folders, for a prompt about images.", show_default=False),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Labelled images to show as well: a built-in name, a file or a hub data set.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Which split of --data to show, e.g. test.", show_default="test; a file has none"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Show at most this many rows of --data.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Write the inspection to this file as one self-contained HTML page.", show_default=False
        ),
    ] = None,
    top: Annotated[
        int,
        typer.Option(min=1, help="How many words to show for each virtual token, and labels for each image."),
    ] = 5,
    labels: Labels = None,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show what a saved prompt has learned.

    For each virtual token: the nearest words, its norm, and how far it moved from its initial value. For a prompt about
    images: the likeliest labels of each image, what the class token attends to, and, for labelled images, which labels are
    confused.
    """
    with reporting(as_json, debug) as report:
        from softprompt.cli._page import inspection_page
        from softprompt.inspection.virtual_tokens import inspect_prompt

        if data is None and (split or limit):
            raise ValueError("--split and --limit need --data, which was not given")
        tuned = open_prompt(prompt, backbone, dtype, device, labels)
        report.values["prompt"] = str(prompt)
        if tuned.task.about_images or images or data:
            from softprompt.cli._image_page import image_page, show_images
            from softprompt.cli._results import read_source
            from softprompt.inspection.images import inspect_images

            rows = read_source(data, split, "test", limit) if data is not None else []
            seen = inspect_images(tuned, [*image_paths(images or []), *rows], top=top)
            show_images(report, seen, top)
            if seen.words is not None:
                report.values["words"] = dataclasses.asdict(seen.words)
                _show(report, seen.words)
            page = partial(image_page, seen, top)
        else:
            found = inspect_prompt(tuned, top)
            report.values.update(dataclasses.asdict(found))
            _show(report, found)
            page = partial(inspection_page, found)
        if html is not None:
            write_text(html, page())
            report.values["html"] = str(html)
            report.human.print(f"page: {html}", highlight=False, markup=False, soft_wrap=True)


def _show(report: Report, found: PromptReport) -> None:
    from rich.table import Table
    from rich.text import Text

    from softprompt.inspection.virtual_tokens import drift_in_words, summary_of

    mean, deviation = found.vocabulary_norm
    facts = [
        f"{found.method} on {found.backbone}",
        f"norm of a word: {mean:.3g} +- {deviation:.2g}",
        f"start: {found.init}",
        f"logit lens: the vector itself through {found.lens}"
        if found.lens
        else "logit lens: no output head to use",
        *(f"also learned: {line}" for line in found.beside),
    ]
    for line in facts:
        report.human.print(line, highlight=False, markup=False, soft_wrap=True)
    if not found.tokens:
        return
    report.human.print(summary_of(found), highlight=False, markup=False, soft_wrap=True)
    table = Table("#", "norm (%ile)", "nearest words", "logit lens", "from start")
    for token in found.tokens:
        cells = [
            token.place,
            f"{token.norm:.3g} ({token.norm_percentile:.0f})",
            _words(token.nearest["centred"]),
            _words(token.lens or ()),
            drift_in_words(token),
        ]
        table.add_row(*(Text(cell, overflow="fold") for cell in cells))
    report.human.print(table)


def _words(words: tuple[Word, ...]) -> str:
    return "  ".join(word.text for word in words)
