"""The progress that a run shows."""

from __future__ import annotations

import io
import json

from rich.console import Console

from softprompt.training.progress import ConsoleProgress, Record

RECORDS = [Record(step, 1 / step, 0.1, 1.0, 200, 0.1) for step in range(1, 5)]
EVALUATED = Record(4, 0.25, 0.1, 1.0, 200, 0.1, {"accuracy": 0.75})


def shown(*, terminal: bool) -> str:
    file = io.StringIO()
    progress = ConsoleProgress(Console(file=file, force_terminal=terminal, width=120, color_system=None))
    progress.begin(8, 0)
    for record in RECORDS:
        progress.update(record)
    progress.report(EVALUATED, is_best=True)
    progress.end()
    progress.begin(8, 4)
    progress.end()
    return file.getvalue()


def test_without_a_terminal_each_evaluation_is_a_line() -> None:
    assert shown(terminal=False).splitlines() == [
        "step 4/8  loss 0.8245  accuracy 0.75  2,000 tokens/s  best",
        "resumed after step 4 of 8",
    ]


def test_in_a_terminal_a_bar_shows_loss_metric_rate_and_remaining_time() -> None:
    bar = shown(terminal=True)
    assert "4/8" in bar
    assert "loss 0.8245  accuracy 0.75  2,000 tokens/s" in bar
    assert ":" in bar  # the remaining time


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
