"""The progress that a run shows."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
from rich.console import Console

from softprompt.training.progress import ConsoleProgress, Counting, Record

RECORDS = [Record(step, 1 / step, 0.1, 1.0, 200, 0.1) for step in range(1, 5)]
EVALUATED = Record(4, 0.25, 0.1, 1.0, 200, 0.1, {"accuracy": 0.75})


def shown(*, terminal: bool, width: int = 120) -> str:
    file = io.StringIO()
    progress = ConsoleProgress(Console(file=file, force_terminal=terminal, width=width, color_system=None))
    progress.begin(8, 0)
    for record in RECORDS:
        progress.update(record)
    progress.report(EVALUATED, is_best=True)
    progress.end()
    progress.begin(8, 4)
    progress.end()
    return file.getvalue()


def test_without_a_terminal_each_evaluation_is_a_line() -> None:
    first, second = shown(terminal=False).splitlines()
    assert re.fullmatch(r"step 4/8  0:00 left  accuracy 0.75  loss 0.8245  2,000 tokens/s  best", first)
    assert second == "resumed after step 4 of 8"


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_in_a_terminal_a_line_shows_step_time_and_metric_however_narrow_it_is(width: int) -> None:
    written = shown(terminal=True, width=width)
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", written))
    bar = next(line for line in reversed(lines) if "4/8" in line and "resumed" not in line and "0.75" in line)
    assert len(bar) < width
    for part in ("4/8", "left", "accuracy 0.75"):
        assert part in bar
    assert ("2,000 tokens/s" in bar) == (width >= 80)


def test_a_notebook_gets_one_bar_that_is_replaced() -> None:
    bars: list[str] = []

    def display(html: str) -> Callable[[str], None]:
        bars.append(html)
        return bars.append

    progress = ConsoleProgress(Console(file=io.StringIO()), display)
    progress.begin(8, 0)
    for record in RECORDS:
        progress.update(record)
    progress.report(replace(EVALUATED, metrics={"<b>": 0.5}), is_best=False)
    progress.end()
    assert '<progress value="0" max="8"' in bars[0]
    assert '<progress value="4" max="8"' in bars[-1]
    assert "&lt;b&gt; 0.5" in bars[-1]
    assert "<b>" not in bars[-1]


def test_images_are_counted_as_images() -> None:
    assert replace(EVALUATED, tokens=0, rows=8, images=8).pace() == (8, "images")
    assert replace(EVALUATED, tokens=0, rows=8).pace() == (8, "rows")
    assert EVALUATED.pace() == (200, "tokens")


def test_a_record_is_one_flat_line_of_json() -> None:
    assert json.loads(json.dumps(EVALUATED.as_dict())) == {
        "step": 4,
        "loss": 0.25,
        "lr": 0.1,
        "gradient_norm": 1.0,
        "tokens": 200,
        "seconds": 0.1,
        "eval/accuracy": 0.75,
    }


def test_rows_are_counted_in_one_line_that_fits() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, color_system=None)
    with Counting(console, "evaluated", 1000) as counting:
        counting.reached(500)
        counting._live.refresh()
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()))
    assert any("evaluated 500/1,000  0:00 left" in line for line in lines)
    assert max(map(len, lines)) < 40
    silent = io.StringIO()
    with Counting(Console(file=silent), "evaluated", 10) as counting:
        counting.reached(10)
    assert silent.getvalue() == ""  # less than half a minute
