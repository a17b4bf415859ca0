"""Rows to measure on, and metrics in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from softprompt.concerns import FEW_ROWS
from softprompt.data import Row, load_rows, open_rows

if TYPE_CHECKING:
    from softprompt.cli._console import Report
    from softprompt.studies.results import StudyResults

FILES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def read_source(
    source: str, split: str | None, usual: str, limit: int | None, encoding: str = "utf-8"
) -> Sequence[Row]:
    """Rows of a source; those of a large file are read when they are asked for, unless there is a limit.

    source  a built-in name, a file or a hub data set
    split   which split to read; None: `usual`, or the whole of a file
    usual   the split that is read by default
    limit   at most this many rows
    encoding  of a text file

    Raises whatever `load_rows` raises.
    """
    is_file = Path(source).suffix in FILES or Path(source).is_file()
    split = split or (None if is_file else usual)
    return (
        open_rows(source, split, encoding=encoding)
        if limit is None
        else load_rows(source, split, limit, encoding=encoding)
    )


def scores(main_metric: str, metrics: Mapping[str, Any]) -> str:
    """The main metric with what it is compared with: "accuracy 0.8125 (majority class 0.5000, 64 rows)"."""
    beside = []
    if main_metric == "accuracy" and "majority_accuracy" in metrics:
        beside.append(f"majority class {metrics['majority_accuracy']:.4f}")
    if "rows" in metrics:
        beside.append(f"{metrics['rows']} rows")
        if metrics["rows"] < FEW_ROWS:
            beside.append(_uncertain(main_metric, metrics))
    return f"{main_metric} {metrics[main_metric]:.4f}" + (f" ({', '.join(beside)})" if beside else "")


def few_rows_are(count: int) -> str:
    """The warning about few rows; empty for 50 and more, and for none."""
    return (
        f"{count} rows are few: give {FEW_ROWS} or more before you trust a score."
        if 0 < count < FEW_ROWS
        else ""
    )


def _uncertain(main_metric: str, metrics: Mapping[str, Any]) -> str:
    if main_metric != "accuracy":
        return "which are few"
    from softprompt.studies.statistics import wilson

    low, high = wilson(metrics["accuracy"], metrics["rows"])
    return f"which are few: 95 % interval {low:.2f} to {high:.2f}"


def metrics_table(columns: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """A table of the metrics that are numbers, with a column for each data set."""
    counts = [metrics["rows"] for metrics in columns.values() if "rows" in metrics]
    few = few_rows_are(min(counts, default=0))
    table = Table("metric", *(escape(name) for name in columns), title=Text(title), caption=few or None)
    names = dict.fromkeys(
        name
        for metrics in columns.values()
        for name, value in metrics.items()
        if isinstance(value, int | float)
    )
    for name in names:
        table.add_row(name, *(_number(metrics.get(name)) for metrics in columns.values()))
    return table


def show_study(report: Report, results: StudyResults) -> None:
    """Print a study's scores, what it found, and a warning about few rows."""
    from softprompt.studies.finding import few_rows, finding
    from softprompt.studies.tables import score_table

    heads, rows = score_table(results)
    table = Table()
    for head in heads:
        table.add_column(Text(head))
    for row in rows:
        table.add_row(*(Text(cell, overflow="fold") for cell in row))
    report.human.print(table)
    sentence, remark = finding(results)
    report.values["finding"] = sentence
    report.human.print(f"{sentence} {remark}".strip(), highlight=False, markup=False, soft_wrap=True)
    if few := few_rows(results):
        report.warn(few)


def _number(value: Any) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.4f}"
