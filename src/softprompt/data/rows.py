"""The type of a row, and conversion of other containers to rows."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from softprompt.data.indexed import IndexedRows, ViewedRows

Row = Mapping[str, Any]

Rows = Sequence[Row] | str | Path
"""The argument of `fit` and related functions: rows, or the name of a data set that `load_rows` reads."""


class NamedNumber(int):
    """The number of a class in a column of a Dataset that has names for its classes.

    name  of the class
    """

    name: str

    def __new__(cls, number: int, name: str) -> NamedNumber:
        """A number that is equal to the number."""
        found = super().__new__(cls, number)
        found.name = name
        return found


def rows_from(source: Any, split: str | None = None) -> list[dict[str, Any]]:
    """Rows from a list of dictionaries, a Dataset or DatasetDict of the library datasets, a pandas or polars frame.

    split: which split of a DatasetDict to read.

    Column names become text, and scalars of torch and NumPy become Python's. Images of a Dataset stay files, and numbers of
    classes that have names (ClassLabel) are given as `NamedNumber`.
    Raises ValueError for a split that is not there or not named, TypeError for anything else.
    """
    return list(viewed(source, split))


def viewed(source: Any, split: str | None = None) -> IndexedRows:
    """The rows of `rows_from`, each made when it is asked for. A list and a Dataset are not copied."""
    if _is_split_up(source):
        if split is None or split not in source:
            asked = "say which" if split is None else f"there is no {split!r}"
            raise ValueError(
                f"a {type(source).__name__} has the splits {list(source)}: {asked}, as in"
                f" data[{next(iter(source), 'train')!r}]"
            )
        return viewed(source[split])
    if split is not None:
        raise ValueError(f"split={split!r} was asked for, but a list of rows has no splits: leave split out")
    if isinstance(source, Mapping):
        raise TypeError(
            f"rows are a dictionary with the keys {list(source)[:5]}, expected a list of dictionaries, one for each row:"
            " pass [row] for a single row"
        )
    names: dict[str, Sequence[str]] = {}
    if hasattr(source, "to_dicts"):  # polars
        source = source.to_dicts()
    elif hasattr(source, "to_dict") and hasattr(source, "columns"):  # pandas
        _check_names(source.columns)  # to_dict leaves out all but one column of a name
        source = source.to_dict("records")
    elif hasattr(source, "features"):  # datasets
        source = _with_undecoded_images(source)
        names = _class_names(source)
    listed = source if _is_indexed(source) else list(_iterated(source))
    if isinstance(listed, list | tuple):
        for index, row in enumerate(listed):
            _check(index, row)
    return ViewedRows(listed, partial(_plain, names))


def _is_indexed(source: Any) -> bool:
    """Whether a row can be asked for by its number."""
    return isinstance(source, Sequence) or (hasattr(source, "features") and hasattr(source, "__len__"))


def _class_names(data: Any) -> dict[str, Sequence[str]]:
    """The names of the classes, by column."""
    import datasets

    features = data.features or {}
    return {name: kind.names for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}


def _is_split_up(source: Any) -> bool:
    """Whether this is a DatasetDict, or a dictionary of data sets."""
    return (
        isinstance(source, Mapping)
        and bool(source)
        and all(hasattr(part, "features") for part in source.values())
    )


def _iterated(source: Any) -> Iterable[Any]:
    try:
        return iter(source)
    except TypeError:
        raise TypeError(
            f"rows are a {type(source).__name__} ({reprlib.repr(source)}), expected a list of dictionaries, a data frame,"
            " or the name of a file or data set"
        ) from None


def _check(index: int, row: Any) -> None:
    if not isinstance(row, Mapping):
        raise TypeError(
            f"row {index} is a {type(row).__name__} ({reprlib.repr(row)}), expected a dictionary from column to value"
        )


def _check_names(columns: Iterable[Any]) -> None:
    """Raise ValueError for columns that have the same name, when it is written as text."""
    counts = Counter(str(name) for name in columns)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"each column needs a name of its own, and these names are there more than once: {reprlib.repr(repeated)}"
            " (1 and '1' are one name)"
        )


def _plain(names: Mapping[str, Sequence[str]], index: int, row: Any) -> dict[str, Any]:
    _check(index, row)
    plain = {str(name): scalar(value) for name, value in row.items()}
    if len(plain) < len(row):
        _check_names(row)
    for column, known in names.items():
        number = plain.get(column)
        if isinstance(number, int) and 0 <= number < len(known):
            plain[column] = NamedNumber(number, known[number])
    return plain


def scalar(value: Any) -> Any:
    """A tensor or array without dimensions as a Python number; anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _with_undecoded_images(data: Any) -> Any:
    """A Dataset whose images are not decoded: it is smaller, and an error when one is read names it."""
    import datasets

    if not isinstance(data, datasets.Dataset):
        return data
    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data
