"""Labels, domains and weights of rows: how the data writes them, and how predicted labels are judged."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Annotated, Any

from pydantic import BeforeValidator

from softprompt.concerns import unseen_labels
from softprompt.data import Row
from softprompt.data.rows import NamedNumber
from softprompt.tasks.columns import read_column
from softprompt.tasks.metrics import classification_metrics


def label_names(labels: Any) -> Any:
    """Return the labels of a config as text; pydantic refuses what is not a list. Raises ValueError for two equal ones."""
    if isinstance(labels, str) or not isinstance(labels, Sequence):
        return labels
    names = tuple(str(label) for label in labels)
    first: dict[str, int] = {}
    for place, name in enumerate(names):
        if (other := first.setdefault(name, place)) != place:
            raise ValueError(
                f"{labels[other]!r} and {labels[place]!r}, the names at {other} and {place} (from 0), are the same text,"
                f" {name!r}, and names are compared as text: leave one out, or rename it"
            )
    return names


def _values_as_text(values: Any) -> Any:
    return {str(k): str(v) for k, v in values.items()} if isinstance(values, Mapping) else values


Names = Annotated[Sequence[str], BeforeValidator(label_names)]
"""Labels, which are compared as text."""
Values = Annotated[Mapping[str, str], BeforeValidator(_values_as_text)]
"""What the data writes -> the label that it means; both are compared as text."""


def check_labels(labels: Iterable[str], **led_to: Iterable[str]) -> None:
    """Raise ValueError for fewer than two labels, and for a setting, given by its name, with a value that is not a label."""
    labels = list(labels)
    if len(labels) < 2:
        raise ValueError(f"labels are {labels}: two or more are needed")
    for setting, values in led_to.items():
        if unknown := [value for value in values if value not in labels]:
            raise ValueError(f"{setting} has {unknown}, which are not among the labels {labels}")


@dataclass(frozen=True)
class Labelling:
    """The labels of a task and how rows say which one is right. All tasks that choose a label share this.

    labels     the K labels
    column     the column that holds the right label; `columns` may rename it
    columns    the task's names -> columns of the data
    values     what the data writes -> label, where the two differ
    competing  the labels among which the loss is computed; None: all
    fields     what else the task reads of a row; an error suggests none of these columns for a missing label
    """

    labels: Sequence[str]
    column: str
    columns: Mapping[str, str]
    values: Mapping[str, str]
    competing: Sequence[str] | None = None
    fields: Sequence[str] = ()

    def is_in(self, row: Row) -> bool:
        """Return whether the row has the column that holds its right label."""
        return self.columns.get(self.column, self.column) in row

    def read(self, row: Row) -> str:
        """Return the right label of a row. Raises ValueError if its column is missing or its value is not a label."""
        found = read_column(row, self.column, self.columns, self.fields)
        value = found.decode(errors="backslashreplace") if isinstance(found, bytes) else str(found)
        if isinstance(found, NamedNumber) and self.values.get(value, value) not in self.labels:
            value = found.name
        label = self.values.get(value, value)
        if label not in self.labels:
            meant = _meant(value, self.labels)
            same = unicodedata.normalize("NFC", value) == unicodedata.normalize("NFC", meant)
            raise ValueError(
                f"label {value!r} is not among the labels {list(self.labels)}, in row {reprlib.repr(dict(row))}; add it to"
                f" labels, or say what it means, as in label_values={{{value!r}: {meant!r}}}"
                + (
                    " (the two have other code points for the same accents: normalise both to NFC)"
                    if same
                    else ""
                )
            )
        return label

    def metrics(self, predictions: Sequence[Any], rows: Sequence[Row]) -> dict[str, Any]:
        """Return `classification_metrics`. predictions: one for each row, with a `label`."""
        return classification_metrics(
            [intern(self.read(row)) for row in rows], [p.label for p in predictions], list(self.labels)
        )

    def concerns(self, train: Sequence[Row]) -> list[str]:
        """Return a sentence if no training row has some of the labels that compete."""
        seen: set[str] = set()
        for row in train:
            seen.add(self.read(row))
            if len(seen) == len(self.labels):
                break
        return unseen_labels(self.competing or self.labels, seen)


def _meant(value: str, labels: Sequence[str]) -> str:
    """The label that is equal but for case, blanks, the form of a number or of accents; "..." if none is."""
    return next((label for label in labels if _plain(label) == _plain(value)), "...")


def _plain(text: str) -> str:
    plain = unicodedata.normalize("NFKC", text).strip().casefold()
    try:
        return f"{float(plain):g}"
    except ValueError:
        return plain


def read_domain(row: Row, column: str, columns: Mapping[str, str], domains: Sequence[str]) -> int:
    """Return the number of a row's domain, the last one if the row names none. Raises ValueError for an unknown domain."""
    column = columns.get(column, column)
    if not domains or column not in row:
        return max(len(domains) - 1, 0)
    if (domain := str(row[column])) not in domains:
        raise ValueError(
            f"domain {domain!r} is not among the domains {list(domains)}: add it, or leave the column {column!r} out where a"
            f" row belongs to {domains[-1]!r}"
        )
    return list(domains).index(domain)


def read_weight(row: Row, column: str | None, columns: Mapping[str, str]) -> float:
    """Return the factor of a row's loss, 1 if the row has none. Raises ValueError for anything but a number of 0 or more."""
    if column is None or (column := columns.get(column, column)) not in row:
        return 1.0
    weight = row[column]
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"weight {weight!r} in column {column!r}: expected a number of 0 or more")
    return float(weight)
