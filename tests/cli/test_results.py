"""Scores in words and as tables."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from softprompt.cli._results import few_rows_are, metrics_table, scores


def shown(rows: int) -> str:
    file = io.StringIO()
    metrics = {"accuracy": 0.75, "rows": rows}
    Console(file=file, width=120).print(metrics_table({"test": metrics}, "a title"))
    return file.getvalue()


@pytest.mark.parametrize(("rows", "warns"), [(12, True), (49, True), (50, False)])
def test_below_fifty_rows_every_printed_score_warns(rows: int, warns: bool) -> None:
    metrics = {"accuracy": 0.75, "majority_accuracy": 0.5, "rows": rows}
    assert ("which are few: 95 % interval 0." in scores("accuracy", metrics)) == warns
    assert ("which are few" in scores("rouge_l", {"rouge_l": 0.5, "rows": rows})) == warns
    assert (f"{rows} rows are few" in shown(rows)) == warns
    assert bool(few_rows_are(rows)) == warns


def test_without_rows_there_is_nothing_to_warn_of() -> None:
    assert few_rows_are(0) == ""
