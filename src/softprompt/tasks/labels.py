"""Class labels, domains and weights: how the data writes them, and what makes it doubtful that labels were learned."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softprompt.data import Row
from softprompt.tasks.columns import read_column


def label_names(labels: Any) -> Any:
    """Labels of a config as text; what is no list is left for pydantic to refuse. Raises ValueError for two alike."""
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


def read_label(
    row: Row, column: str, columns: Mapping[str, str], values: Mapping[str, str], labels: Iterable[str]
) -> str:
    """The right label of a row; `values` leads from what the data writes to the label.

    Raises ValueError if its column is missing or its value is no label.
    """
    labels = list(labels)
    value = str(read_column(row, column, columns))
    label = values.get(value, value)
    if label not in labels:
        raise ValueError(
            f"label {value!r} is not among the labels {labels}, in row {reprlib.repr(dict(row))}; add it to labels, or"
            f" say what it means, as in label_values={{{value!r}: {labels[0]!r}}}"
        )
    return label


def read_domain(row: Row, column: str, columns: Mapping[str, str], domains: Sequence[str]) -> int:
    """Number of a row's domain; the last one's where the row does not say. Raises ValueError for an unknown one."""
    column = columns.get(column, column)
    if not domains or column not in row:
        return max(len(domains) - 1, 0)
    if (domain := str(row[column])) not in domains:
        raise ValueError(
            f"domain {domain!r} is not among the domains {list(domains)}: add it, or leave the column {column!r} out where a"
            f" row is of {domains[-1]!r}"
        )
    return list(domains).index(domain)


def read_weight(row: Row, column: str | None, columns: Mapping[str, str]) -> float:
    """What a row's loss is multiplied by, 1 where nothing says so. Raises ValueError for what is no number of 0 or more."""
    if column is None or (column := columns.get(column, column)) not in row:
        return 1.0
    weight = row[column]
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise ValueError(f"weight {weight!r} in column {column!r}: expected a number of 0 or more")
    return float(weight)


def label_concerns(seen: set[str], labels: Iterable[str], metrics: Mapping[str, Any]) -> list[str]:
    """Labels without a training row; a model that gives all rows the same label."""
    found = []
    if unseen := [label for label in labels if label not in seen]:
        found.append(f"no training row has the labels {unseen}: they cannot be learned")
    used = [label for label, count in metrics.get("predicted", {}).items() if count]
    if len(used) == 1 and len(seen) > 1:
        found.append(
            f"every validation row was given the label {used[0]!r}: nothing but the majority was learned;"
            " try more steps or another learning_rate"
        )
    return found
