"""Rows of a user's file, in whatever encoding it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.data import load_rows, names_file
from softprompt.data.files import is_table, suffix_of

_LONGEST_NAME = 60  # characters of a column's name


def read(source: str, encoding: str | None) -> tuple[list[dict[str, Any]], str | None, list[str]]:
    """Rows of a source, the encoding that a config must name, and what to say about it.

    Of a source with splits the training rows. A text file that is not UTF-8 is read as Western Windows.
    Raises ValueError for a table without a header, and whatever `load_rows` raises.
    """
    if not names_file(source):
        return (
            load_rows(source, "train"),
            None,
            [f"the rows are those of its split 'train' ({source} has splits)"],
        )
    said = []
    try:
        rows = load_rows(source, encoding=encoding or "utf-8")
    except ValueError as error:
        if encoding is not None or not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        encoding = "cp1252"
        rows = load_rows(source, encoding=encoding)
        said.append(
            "the file is not UTF-8, and was read as cp1252 (Western Windows): look at accents and quotes"
        )
    if is_table(Path(source)) and suffix_of(Path(source)) in (".csv", ".tsv"):
        _check_header(source, rows)
    return rows, encoding, said


def _check_header(source: str, rows: list[dict[str, Any]]) -> None:
    """Raise ValueError if the first line seems to be a row like the others."""
    names = list(rows[0])
    values = [{str(row[name]) for row in rows} for name in names]
    numbers = [name for name in names if name.replace(".", "", 1).isdigit()]
    repeated = [
        name for name, found in zip(names, values, strict=True) if name in found and len(found) < len(rows)
    ]
    long = [name for name in names if len(name) > _LONGEST_NAME]
    if numbers or repeated or long:
        raise ValueError(
            f"{source}: the first line looks like a row and not like names of columns ({(numbers + repeated + long)[0]!r}):"
            " write a line with names above it, such as text,label"
        )
