"""The rows of a source that a config names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.data import names_file, open_rows, rows_of_part, subsample
from softprompt.fitting.run_config import SourceConfig


def source_rows(source: SourceConfig, usual: str) -> Sequence[Mapping[str, Any]]:
    """Read the rows of a source; if it has splits and names none, those of the split `usual`.

    A large file is read row by row, when rows are asked for, unless the source says which of its rows are meant.

    Raises as `load_rows`, and ValueError for `only` with a column or a value that no row has.
    """
    split = source.split or (None if names_file(source.source) else usual)
    rows = open_rows(source.source, split, encoding=source.encoding or "utf-8")
    if source.part is not None:
        rows = rows_of_part(rows, source.part)
    for column, values in (source.only or {}).items():
        rows = _with_values(rows, column, values, source.source)
    if source.limit is not None:
        rows = subsample(rows, source.limit, seed=source.draw, stratify=source.stratify)
    return rows if source.words is None else [_cut(row, source.words) for row in rows]


def _cut(row: Mapping[str, Any], words: int) -> dict[str, Any]:
    return {k: " ".join(v.split()[:words]) if isinstance(v, str) else v for k, v in row.items()}


def _with_values(
    rows: Sequence[Mapping[str, Any]], column: str, values: Sequence[str], name: str
) -> list[Mapping[str, Any]]:
    if column not in rows[0]:
        raise ValueError(f"only: {name} has no column {column!r}, it has {list(rows[0])}")
    if missing := sorted(set(values) - {str(row[column]) for row in rows}):
        raise ValueError(f"only: no row of {name} has {missing[0]!r} in its column {column!r}")
    return [row for row in rows if str(row[column]) in values]
