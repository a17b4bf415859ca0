"""Functions that read the columns of a row; their errors say which columns the row has."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from softprompt.data import Row
from softprompt.tasks.base import Task, TextSetting


def guess(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: it suggests the nearest known name, or lists all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {known}"


def read_column(row: Row, name: str, columns: Mapping[str, str]) -> Any:
    """Return the value of a column of a row.

    Arguments:
        row: the row
        name: the column as the template (or the task) names it
        columns: name in the template -> column of the data, where the two differ

    Raises:
        ValueError: if the row does not have the column (the error names those it has), or its value is None or NaN
    """
    column = columns.get(name, name)
    if column not in row:
        have = [str(key) for key in row]
        near = difflib.get_close_matches(column, have, n=1, cutoff=0.5)
        others = [key for key in have if key not in columns.values()]
        likely = near[0] if near else next(iter(others), "...")
        renamed = f" (for {name!r})" if column != name else ""
        raise ValueError(
            f"columns are {have}, {column!r} is needed{renamed}: pass columns={{{name!r}: {likely!r}}}"
            " or whichever column holds it"
        )
    value = row[column]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise ValueError(
            f"column {column!r} is {value!r} in row {reprlib.repr(dict(row))}; fill or drop such rows"
        )
    return value


def read_fields(row: Row, names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each field by its name. A value that is not a string is converted with `str`; a text may be
    empty."""
    return {name: str(read_column(row, name, columns)) for name in names}


def read_media(row: Row, name: str | None, columns: Mapping[str, str], setting: TextSetting) -> Tensor | None:
    """Return what the backbone reads besides text, from the media column of a row; None where it reads text only.

    Arguments:
        row: the row
        name: the media column as the task names it; None: the task names none
        columns: name in the task -> column of the data, where the two differ
        setting: says how the backbone reads media

    Raises:
        ValueError: if the task names a media column and the backbone reads text only, or the other way round
    """
    if name is None and setting.read_media is None:
        return None
    if name is None or setting.read_media is None:
        raise ValueError(
            "this backbone reads sound or pictures: name their column in the task, as in media='audio'"
            if name is None
            else f"media={name!r} names a column of sound or pictures, but this backbone reads text only: leave it out"
        )
    return setting.read_media(read_column(row, name, columns))


def check_columns(columns: Mapping[str, str], names: Sequence[str]) -> None:
    """Raise ValueError for a key of `columns` that the task does not read."""
    for key in columns:
        if key not in names:
            raise ValueError(f"columns has the key {key!r}, which the task does not read{guess(key, names)}")


def as_row(task: Task, value: Any) -> Row:
    """Return a value as a row: a string or an image becomes the row of a task with one field, and a row stays as it is."""
    if isinstance(value, Mapping):
        return value
    if len(task.fields) != 1:
        raise ValueError(
            f"the template needs the columns {list(task.fields)}: pass a dictionary with them, not a string"
        )
    name = task.fields[0]
    return {task.columns.get(name, name): value}
