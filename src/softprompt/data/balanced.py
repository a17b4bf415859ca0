"""Parts of rows that have no splits: every label keeps its share in each part, and rows that belong together stay together."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

RowT = TypeVar("RowT", bound=Mapping[str, Any])
Part = Literal["train", "validation", "test"]

_SHARE = 0.15  # of the rows of a label that validate, and as many that test


def balanced_part(
    rows: Sequence[RowT], part: Part, *, balance: str | None, together: Sequence[str] = (), seed: int = 0
) -> list[RowT]:
    """The rows of one of three parts, of 70, 15 and 15 percent, in their order.

    balance   the column whose values, such as the labels, keep their shares in each part; None: there is none
    together  columns: rows that are equal in one of them, but for case, punctuation and spaces, are in the same part. By
              default rows that are equal in everything but `balance`
    seed      another number makes other parts

    The order of the rows does not matter. A value of `balance` with fewer than three different rows is in the training part
    alone. Raises ValueError if a row lacks a column, and for a part without rows.
    """
    for number, row in enumerate(rows):
        for column in (*([balance] if balance else []), *together):
            if column not in row:
                raise ValueError(f"row {number} has no column {column!r}; its columns are {list(row)}")
    by_label: dict[str, list[list[int]]] = defaultdict(list)
    for group in _groups(rows, balance, together):
        labels = Counter(str(rows[i].get(balance)) if balance else "" for i in group)
        by_label[min(labels, key=lambda label: (-labels[label], label))].append(group)
    wanted: list[int] = []
    for label in sorted(by_label):
        wanted += _parts(_shuffled(rows, by_label[label], seed))[part]
    if not wanted:
        raise ValueError(
            f"{len(rows)} rows leave none for the part {part!r}: give 10 different rows or more, or a file for each part"
        )
    return [rows[i] for i in sorted(wanted)]


def plain(value: Any) -> str:
    """A value without what makes no difference between near-duplicates: case, punctuation and spaces."""
    return " ".join(re.findall(r"\w+", str(value).casefold()))


def _groups(rows: Sequence[RowT], balance: str | None, together: Sequence[str]) -> list[list[int]]:
    """Indices of rows that stay together, found by joining rows that share a value."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, row in enumerate(rows):
        for key in _keys(row, balance, together):
            parent[root(i)] = root(first.setdefault(key, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(rows)):
        groups[root(i)].append(i)
    return list(groups.values())


def _keys(row: RowT, balance: str | None, together: Sequence[str]) -> list[tuple[str, str]]:
    """What joins a row with others; an empty value joins nothing."""
    if together:
        found = [(column, plain(row[column])) for column in together]
    else:
        found = [("", "\n".join(f"{name}={plain(row[name])}" for name in sorted(row) if name != balance))]
    return [key for key in found if key[1]]


def _shuffled(rows: Sequence[RowT], groups: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Groups in an order that depends on their content and the seed alone."""

    def place(group: list[int]) -> str:
        texts = sorted(repr(sorted(rows[i].items(), key=lambda item: str(item[0]))) for i in group)
        return hashlib.sha256("\n".join([str(seed), *texts]).encode("utf-8", "backslashreplace")).hexdigest()

    return sorted(groups, key=place)


def _parts(groups: Sequence[list[int]]) -> dict[Part, list[int]]:
    """The groups of one label in three parts: testing and validation are filled first, up to their share."""
    total = sum(map(len, groups))
    parts: dict[Part, list[int]] = {"train": [], "validation": [], "test": []}
    share = max(1, round(_SHARE * total)) if len(groups) > 2 else 0
    for left, group in zip(range(len(groups), 0, -1), groups, strict=True):
        # A group that does not fit goes to the training rows, and the last group always does.
        fits: list[Part] = [p for p in ("test", "validation") if len(parts[p]) + len(group) <= share]
        parts[fits[0] if fits and (left > 1 or parts["train"]) else "train"] += group
    return parts
