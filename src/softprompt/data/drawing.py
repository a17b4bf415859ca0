"""Random draws from a data set: a subsample, a few rows of each class, or the parts of rows without splits."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

RowT = TypeVar("RowT", bound=Mapping[str, Any])


def subsample(rows: Sequence[RowT], n: int, seed: int, stratify: str | None = None) -> list[RowT]:
    """At most `n` rows, drawn without replacement, in their original order; the same for the same seed.

    stratify: a column whose values keep their shares (largest remainders, ties by order of appearance).
    Raises ValueError for n < 1, or if a row lacks the column.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"the number of rows is {n!r}: expected a whole number, 1 or more")
    if n >= len(rows):
        return list(rows)
    if stratify is None:
        return [rows[i] for i in sorted(permutation(len(rows), seed)[:n])]

    groups = _groups(rows, stratify)
    exact = {value: n * len(indices) / len(rows) for value, indices in groups.items()}
    counts = {value: int(share) for value, share in exact.items()}
    # The sort is stable, so ties go by appearance.
    by_remainder = sorted(groups, key=lambda value: counts[value] - exact[value])
    for value in by_remainder[: n - sum(counts.values())]:
        counts[value] += 1
    return _draw(rows, groups, counts, seed)


def rows_of_part(rows: Sequence[RowT], part: Literal["train", "validation", "test"]) -> list[RowT]:
    """About eight tenths of rows that have no splits to train on, one to validate on, one to test on; in their order.

    By the sha256 of a row's content: equal rows are in the same part, and the order of the rows does not matter.
    Raises ValueError for fewer than 10 different rows.
    """
    digests = [
        hashlib.sha256(json.dumps(dict(row), sort_keys=True, default=repr).encode()).digest() for row in rows
    ]
    ranked = sorted(set(digests))
    if len(ranked) < 10:
        raise ValueError(
            f"{len(ranked)} different rows cannot be split in three: give 10 or more, or a file for each part"
        )
    tenth = len(ranked) // 10
    bounds = {"test": (0, tenth), "validation": (tenth, 2 * tenth), "train": (2 * tenth, len(ranked))}
    wanted = set(ranked[slice(*bounds[part])])
    return [row for row, digest in zip(rows, digests, strict=True) if digest in wanted]


def few_shot(rows: Sequence[RowT], k: int, label_column: str, seed: int) -> list[RowT]:
    """`k` rows of each class, drawn without replacement, in their original order; the same for the same seed.

    Raises ValueError for k < 1, if a row lacks the column, and for a class of fewer than k rows.
    """
    if k < 1:
        raise ValueError(f"k={k}: expected 1 row per class or more")
    groups = _groups(rows, label_column)
    short = {value: len(indices) for value, indices in groups.items() if len(indices) < k}
    if short:
        raise ValueError(
            f"k={k} rows per class were asked for, but there are only {short} rows of these; lower k"
        )
    return _draw(rows, groups, dict.fromkeys(groups, k), seed)


def _groups(rows: Sequence[RowT], column: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if column not in row:
            raise ValueError(f"row {index} has no column {column!r}; its columns are {list(row)}")
        groups[str(row[column])].append(index)
    return dict(groups)


def _draw(
    rows: Sequence[RowT], groups: Mapping[str, list[int]], counts: Mapping[str, int], seed: int
) -> list[RowT]:
    # One permutation of all rows: one for each group would draw equal places from groups of equal size.
    rank = {index: place for place, index in enumerate(permutation(len(rows), seed))}
    drawn = [
        i for value, indices in groups.items() for i in sorted(indices, key=rank.__getitem__)[: counts[value]]
    ]
    return [rows[i] for i in sorted(drawn)]


def permutation(n: int, seed: int) -> list[int]:
    """The numbers from 0 to n - 1 in an order that depends only on the seed."""
    import torch  # it takes seconds, which the command line's --help should not wait for

    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order
