"""Rows that a prompt answers wrongly, those first that it is surest of, as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.cli._prediction_files import write_table
from softprompt.tasks import ClassPrediction, LabelsPrediction
from softprompt.tasks.metrics import normalise_text

COLUMNS = ("right", "predicted", "confidence", "probability_of_right")


def wrong_rows(
    encoder: Any, predictions: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows whose prediction is wrong, the confidently wrong ones first, each with the columns above beside its own.

    encoder: the task's, which reads right answers

    For several labels the confidence is that of the surest wrong one. A text is wrong if it is not the reference, but for case
    and blanks; it has no confidence, and the order is that of the rows.
    Raises ValueError for tasks that neither choose labels nor write texts.
    """
    found = []
    for row, prediction in zip(rows, predictions, strict=True):
        answer = _judged(encoder, prediction, row)
        if answer is not None:
            found.append({**{name: _simple(value) for name, value in row.items()}, **answer})
    return sorted(found, key=lambda row: -(row["confidence"] or 0.0))


def write_wrong_rows(
    path: Path, found: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write them to a .csv, .jsonl or .parquet file. Raises ValueError for rows that have one of our columns already."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if taken := [name for name in COLUMNS if name in columns]:
        raise ValueError(f"the rows have a column {taken[0]!r}, which the errors would replace: rename it")
    write_table(path, [*columns, *COLUMNS], found)


def _judged(encoder: Any, prediction: Any, row: Mapping[str, Any]) -> dict[str, Any] | None:
    match prediction:
        case ClassPrediction():
            right = encoder.task.read_label(row)
            if prediction.label == right:
                return None
            shares = prediction.probabilities
            return _columns(right, prediction.label, shares[prediction.label], shares.get(right))
        case LabelsPrediction():
            right = encoder.task.read_labels(row)
            if prediction.labels == right:
                return None
            wrong = set(right) ^ set(prediction.labels)
            surest = max(
                p if k in prediction.labels else 1 - p
                for k, p in prediction.probabilities.items()
                if k in wrong
            )
            return _columns(" | ".join(right), " | ".join(prediction.labels), surest, None)
        case str() if hasattr(encoder, "reference"):
            right = encoder.reference(row)
            same = normalise_text(right) == normalise_text(prediction)
            return None if same else _columns(right, prediction, None, None)
        case _:
            raise ValueError(
                f"--errors is for tasks that choose labels or write texts, and this is {encoder.task.name}"
            )


def _columns(right: str, predicted: str, confidence: float | None, of_right: float | None) -> dict[str, Any]:
    return dict(zip(COLUMNS, (right, predicted, confidence, of_right), strict=True))


def _simple(value: Any) -> Any:
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
