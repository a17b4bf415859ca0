"""softprompt suggest: try a few methods on data within some minutes, and recommend one."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import AsJson, Debug

if TYPE_CHECKING:
    from softprompt.beginning.suggesting import Suggestion, Tried


def suggest(
    data: Annotated[str, typer.Argument(help="A file, a folder of images, a built-in or a hub data set.")],
    minutes: Annotated[float, typer.Option(min=0.01, help="Time for all methods together.")] = 5.0,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Column with the text; twice for two columns.", show_default="inferred"),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Column with the right answer.", show_default="inferred")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Backbone of all methods.", show_default="small built-in ones")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of training and demonstrations.")] = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Try zero-shot, demonstrations, a probe, prompts and LoRA on held-out rows, and recommend one."""
    with reporting(as_json, debug) as report:
        from softprompt.beginning.suggesting import suggest as try_out

        report.note(f"methods are tried for {minutes:g} minutes in all")
        found = try_out(
            data,
            minutes=minutes,
            backbone=backbone,
            text=text,
            label=label,
            seed=seed,
            on_candidate=lambda name: report.note(f"trying {name}"),
        )
        _tell(report, found, data, text, label)


def _tell(report: Report, found: Suggestion, data: str, text: list[str] | None, label: str | None) -> None:
    from rich.table import Table

    table = Table()
    for name, whole in (
        ("method", True),
        ("backbone", False),
        ("score", True),
        ("95 %", True),
        ("s", True),
        ("", False),
    ):
        table.add_column(name, no_wrap=whole, overflow="fold", header_style="bold")
    for one in found.tried:
        remark = "recommended" if one is found.recommended else ""
        if one.stopped:
            remark = f"{remark} stopped after {one.steps[0]} of {one.steps[1]} steps".strip()
        shown = f"{one.interval.low:.2f} to {one.interval.high:.2f}"
        table.add_row(
            one.candidate.method,
            one.candidate.backbone,
            f"{one.score:.3f}",
            shown,
            f"{one.seconds:.0f}",
            remark,
        )
    if found.commonest is not None:
        table.add_row("commonest label", "", f"{found.commonest:.3f}", "", "", "")
    report.human.print(table)
    for name, why in found.not_tried.items():
        report.human.print(f"not tried: {name}, {why}", highlight=False, markup=False, soft_wrap=True)
    best = found.recommended
    score, interval = found.test
    command = [
        "softprompt",
        "init",
        data,
        "--method",
        best.candidate.method,
        "--backbone",
        best.candidate.backbone,
    ]
    for name, values in (("--text", text or []), ("--label", [label] if label else [])):
        command += [word for value in values for word in (name, value)]
    for line in (
        f"recommended: {found.reason}",
        f"test score of {best.candidate.method}: {score:.3f}, 95 % {interval.low:.2f} to {interval.high:.2f}",
        f"next: {shlex.join(command)}",
    ):
        report.human.print(line, highlight=False, markup=False, soft_wrap=True)
    report.values.update(
        {
            "tried": [_row(one) for one in found.tried],
            "not_tried": dict(found.not_tried),
            "recommended": best.candidate.method,
            "reason": found.reason,
            "test": {"score": score, "low": interval.low, "high": interval.high},
            "commonest": found.commonest,
            "next": shlex.join(command),
        }
    )


def _row(one: Tried) -> dict[str, object]:
    return {
        "method": one.candidate.method,
        "backbone": one.candidate.backbone,
        "score": one.score,
        "low": one.interval.low,
        "high": one.interval.high,
        "behind_best": None if one.behind is None else [one.behind.low, one.behind.high],
        "seconds": one.seconds,
        "steps": one.steps[0],
    }
