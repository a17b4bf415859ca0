"""The rows that a prompt answers wrongly as one self-contained HTML page, the confidently wrong ones first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.cli._results import few_rows_are
from softprompt.cli._wrong_rows import COLUMNS
from softprompt.pages import render
from softprompt.studies.statistics import wilson

_MOST = 500  # rows on the page; a file of another kind has all of them


def error_page(
    name: str,
    found: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    fields: Sequence[str],
    facts: Mapping[str, str],
) -> str:
    """The page as HTML. Every text that comes from a row or a model is escaped.

    Arguments:
        name: the title
        found: wrong rows as `wrong_rows` gives them
        rows: all rows that were judged
        fields: the columns that the task reads, which are shown first
        facts: what the prompt was and what it was judged on
    """
    confused = Counter((str(row["right"]), str(row["predicted"])) for row in found)
    labelled = any(row["confidence"] is not None for row in found)
    return render(
        "errors.html",
        title=name,
        summary=_summary(found, rows, confused if labelled else Counter()),
        notes=_notes(found, rows),
        rows=[_values(row, fields) for row in found[:_MOST]],
        labels=sorted({str(row["right"]) for row in found}) if labelled else [],
        given=sorted({str(row["predicted"]) for row in found}),
        confusions=(
            ["right", "given", "rows"],
            [[right, given, str(count)] for (right, given), count in confused.most_common(10)]
            if labelled
            else [],
        ),
        facts=facts,
    )


def _summary(
    found: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    confused: Counter[tuple[str, str]],
) -> str:
    if not rows:
        return "There are no rows."
    low, high = wilson(len(found) / len(rows), len(rows))
    said = (
        f"{len(found)} of {len(rows)} rows are answered wrongly: {100 * len(found) / len(rows):.1f} %, "
        f"95 % interval {100 * low:.1f} to {100 * high:.1f}."
    )
    if confused:
        (right, given), count = confused.most_common(1)[0]
        said += f" Most often {right} is taken for {given}, {count} time{'s' * (count > 1)}."
    return said


def _notes(found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = ["This page holds rows of the data: share it only with those who may read them."] if found else []
    if few := few_rows_are(len(rows)):
        notes.append(few)
    if len(found) > _MOST:
        notes.append(
            f"The first {_MOST} of {len(found)} wrong rows are shown; a .csv or .jsonl file has all of them."
        )
    return notes


def _values(row: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    shown = [name for name in fields if name in row]
    confidence, of_right = row["confidence"], row["probability_of_right"]
    others = {
        name: str(value)
        for name, value in row.items()
        if name not in (*shown, *COLUMNS) and value is not None
    }
    return {
        "right": str(row["right"]),
        "given": str(row["predicted"]),
        "confidence": "" if confidence is None else f"{confidence:.4f}",
        "share": "" if confidence is None else f"{100 * confidence:.0f} %",
        "of_right": "" if of_right is None else f"{100 * of_right:.0f} %",
        "texts": [(name, str(row[name])) for name in shown],
        "others": others,
    }
