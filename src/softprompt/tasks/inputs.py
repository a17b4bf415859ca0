"""What a user gives to predict, as rows of a task; and what a row holds beside text."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt.data import Row
from softprompt.data.rows import rows_from
from softprompt.tasks.base import Task, TextSetting
from softprompt.tasks.columns import read_column


def as_rows(task: Task, values: Iterable[Any]) -> list[Row]:
    """Return many inputs as rows: a list of what `as_row` takes, or a data frame.

    Raises TypeError for a single text, file or row, which would be taken apart, and ValueError as `as_row` does.
    """
    if isinstance(values, str | bytes | Path | Mapping):
        raise TypeError(
            f"one input was given ({reprlib.repr(values)}), expected a list of them: pass [input], and take the first answer"
        )
    if hasattr(values, "to_dicts") or hasattr(values, "to_dict"):  # data frames
        return list(rows_from(values))
    try:
        listed = iter(values)
    except TypeError:
        raise TypeError(
            f"inputs are a {type(values).__name__} ({reprlib.repr(values)}), expected a list of texts, images or rows"
        ) from None
    return [as_row(task, value) for value in listed]


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
