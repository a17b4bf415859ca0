"""Functions that read the columns of a row; their errors say which columns the row has."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from decimal import Decimal
from typing import Any

from softprompt.data import Row
from softprompt.data.rows import scalar
from softprompt.other_names import name_here


def guess(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: it suggests the nearest known name, or lists all of them."""
    known = list(known)
    if (here := name_here(name, known)) is not None:
        return f"; {here}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {known}"


def read_column(row: Row, name: str, columns: Mapping[str, str], others: Sequence[str] = ()) -> Any:
    """Return the value of a column of a row.

    Arguments:
        row: the row
        name: the column as the template (or the task) names it
        columns: name in the template -> column of the data, where the two differ
        others: what else the task reads, as it names it; an error suggests none of their columns

    Raises:
        ValueError: if the row does not have the column (the error names those it has), or its value is None or NaN
    """
    column = columns.get(name, name)
    if column not in row:
        have = [str(key) for key in row]
        taken = {*columns.values(), *(columns.get(other, other) for other in others)}
        free = [key for key in have if key not in taken]
        near = difflib.get_close_matches(column, free, n=1, cutoff=0.5)
        likely = near[0] if near else free[0] if len(free) == 1 else "..."
        renamed = f" (for {name!r})" if column != name else ""
        raise ValueError(
            f"columns are {have}, {column!r} is needed{renamed}: pass columns={{{name!r}: {likely!r}}}"
            f"{' with the column that holds it' if likely == '...' else ' or whichever column holds it'}"
        )
    value = scalar(row[column])
    if _is_missing(value):
        raise ValueError(
            f"column {column!r} is {value!r} in row {reprlib.repr(dict(row))}; fill or drop such rows"
        )
    return value


def _is_missing(value: Any) -> bool:
    """Whether a value says that there is none: None, a NaN of any library, pandas' NA and NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | Decimal) and math.isnan(value)


def read_fields(
    row: Row, names: Sequence[str], columns: Mapping[str, str], others: Sequence[str] = ()
) -> dict[str, str]:
    """Return the text of each field by its name; a text may be empty. Arguments are those of `read_column`.

    Numbers, dates and the like are converted with `str`, bytes are decoded as UTF-8.
    Raises ValueError for a value that is not text, such as a list, and for text that no tokenizer can read.
    """
    return {
        name: _as_text(read_column(row, name, columns, (*names, *others)), columns.get(name, name))
        for name in names
    }


def shown_fields(
    row: Row,
    names: Sequence[str],
    columns: Mapping[str, str],
    others: Sequence[str] = (),
    images: Sequence[str] = (),
) -> dict[str, str]:
    """Return `read_fields` for people: an image, one of `images` or a field called "image", is the text "[image]"."""
    values = {}
    for name in names:
        value = read_column(row, name, columns, (*names, *others))
        is_image = name in images or (name == "image" and not isinstance(value, str))
        values[name] = "[image]" if is_image else _as_text(value, columns.get(name, name))
    return values


def _as_text(value: Any, column: str) -> str:
    if isinstance(value, bytes | bytearray):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"column {column!r} holds bytes that are not UTF-8: {error}") from error
    if not isinstance(value, str):
        kind = type(value)
        # A value without a text of its own would stand in the prompt as Python writes it.
        if isinstance(value, Mapping | Sequence | Set) or hasattr(value, "ndim") or _is_nameless(kind):
            raise ValueError(
                f"column {column!r} holds a {kind.__name__} ({reprlib.repr(value)}), expected text: name the column that"
                " holds the text, or make text of it first"
            )
        return str(value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"column {column!r} holds half of a character ({value[error.start]!r} at {error.start}), which is left when"
                " text is cut between two halves: cut elsewhere, or replace it"
            ) from error
    return value


def _is_nameless(kind: type) -> bool:
    """Whether its objects have no text of their own: Python writes their address."""
    return all(getattr(kind, name) is getattr(object, name) for name in ("__str__", "__repr__"))


def check_columns(columns: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ValueError for a key of `columns` that the task does not read."""
    for key in columns:
        if key not in names:
            raise ValueError(f"columns has the key {key!r}, which the task does not read{guess(key, names)}")
