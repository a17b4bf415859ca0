"""Rows that are read one by one when they are asked for: of a large file, a Dataset or a long list.

A file of lines (.jsonl, .csv) is read once from end to end: each row is checked, and the place where it begins is noted, eight
bytes a row. A .parquet file is copied, a few thousand rows at a time, to a temporary Arrow file that is mapped into memory.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from softprompt.data.files import (
    any_cell_length,
    json_row,
    named_columns,
    other_separator,
    records,
    suffix_of,
)

MANY = 20_000
"""So many rows or more are read and encoded when they are needed, not all of them before the first step."""

_LARGE = 8 * 2**20  # bytes of a file of lines; below it the file is read at once
_BY_LINES = (
    "utf-8",
    "ascii",
    "iso8859-1",
    "cp1252",
)  # encodings in which the byte 10 is a line end and nothing else
_ARROW_ROWS = 1024

Row = dict[str, Any]


class IndexedRows(Sequence[Row]):
    """Rows that are read when they are asked for."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._row(i) for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)} rows")
        return self._row(index % len(self))

    def digest(self) -> str | None:
        """Return a sha256 of the rows, or of the file that they come from; None: they are more than texts and numbers."""
        return digest_of(self)

    @abstractmethod
    def _row(self, index: int) -> Row: ...


class ViewedRows(IndexedRows):
    """The rows of a list or a Dataset, each made plain when it is asked for.

    source  has a length, and gives a row by its number
    plain   is given a row's number and the row
    """

    def __init__(self, source: Any, plain: Callable[[int, Any], Row]) -> None:
        self._source, self._plain = source, plain

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[Row]:
        return (self._plain(index, row) for index, row in enumerate(_in_order(self._source)))

    def _row(self, index: int) -> Row:
        return self._plain(index, self._source[index])


def _in_order(source: Any) -> Iterator[Any]:
    if not hasattr(source, "iter"):
        yield from source
        return
    for batch in source.iter(_ARROW_ROWS):  # of a Dataset, which gives many rows at once far faster
        yield from (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


class FileRows(IndexedRows):
    """The rows of a file of lines.

    path    of the file, which must not change
    bounds  where each row begins, and where the last one ends, in bytes
    parse   makes a row of its bytes
    digest  of the file's bytes
    """

    def __init__(self, path: Path, bounds: array[int], parse: Callable[[bytes], Row], digest: str) -> None:
        self._path, self._bounds, self._parse, self._digest = path.resolve(), bounds, parse, digest
        self._seen = _state(self._path)

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[Row]:
        with self._path.open("rb") as file:
            file.seek(self._bounds[0])
            for start, end in zip(self._bounds, self._bounds[1:], strict=False):
                yield self._parse(file.read(end - start))

    def digest(self) -> str:
        """Return the sha256 of the file."""
        return self._digest

    def _row(self, index: int) -> Row:
        if _state(self._path) != self._seen:
            raise ValueError(f"{self._path.name} was changed while its rows were read: start again")
        start, end = self._bounds[index], self._bounds[index + 1]
        with self._path.open(
            "rb"
        ) as file:  # of its own, so that threads and forked processes share no position
            file.seek(start)
            return self._parse(file.read(end - start))


class ArrowRows(IndexedRows):
    """The rows of an Arrow file that is mapped into memory.

    reader  of the file
    starts  number of the first row of each of its record batches
    count   of all rows
    digest  of the file that it was made from
    """

    def __init__(self, reader: Any, starts: Sequence[int], count: int, digest: str) -> None:
        self._reader, self._starts, self._count, self._digest = reader, starts, count, digest

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Row]:
        for number in range(len(self._starts)):
            yield from self._reader.get_batch(number).to_pylist()

    def digest(self) -> str:
        """Return the sha256 of the file that the rows were read from."""
        return self._digest

    def _row(self, index: int) -> Row:
        number = bisect_right(self._starts, index) - 1
        [row] = self._reader.get_batch(number).slice(index - self._starts[number], 1).to_pylist()
        return dict(row)


def digest_of(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the sha256 of rows as JSON; None for rows that hold more than texts, numbers, lists and dictionaries."""
    digest = hashlib.sha256()
    try:
        for row in rows:
            digest.update(json.dumps(dict(row), sort_keys=True).encode() + b"\n")
    except (TypeError, ValueError):
        return None
    return digest.hexdigest()


def indexed_file(path: Path, encoding: str = "utf-8") -> IndexedRows | None:
    """Return the rows of a large file; None: it is small, damaged, or of a kind that can only be read at once."""
    kinds = {".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    suffix = suffix_of(path)
    if suffix not in kinds or path.suffix.lower() == ".gz" or not path.is_file():
        return None
    try:
        rows = kinds[suffix](path, encoding)
    except (ValueError, LookupError, csv.Error):
        return None  # `read_file` says what is wrong
    return rows if rows is not None and len(rows) else None


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


class _Lines:
    """The lines of a file as text. `position` is where the line after the last one begins, in bytes."""

    def __init__(self, file: Any, codec: str) -> None:
        self._file, self._codec, self.position, self.digest = file, codec, 0, hashlib.sha256()

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.digest.update(line)
            first, self.position = self.position == 0, self.position + len(line)
            yield line.decode("utf-8-sig" if first and self._codec == "utf-8" else self._codec)


def _codec(path: Path, encoding: str) -> str | None:
    """The name of an encoding in which a file can be read by lines."""
    name = codecs.lookup(encoding).name
    return name if name in _BY_LINES and path.stat().st_size >= _LARGE else None


def _json_lines(path: Path, encoding: str) -> IndexedRows | None:
    if (codec := _codec(path, encoding)) is None:
        return None
    with path.open("rb") as file:
        lines, bounds, start = _Lines(file, codec), array("Q"), 0
        for number, line in enumerate(lines, start=1):
            if line.strip():
                json_row(f"{path}, line {number}", line)
                bounds.append(start)
            start = lines.position
    bounds.append(start)
    own = "utf-8-sig" if codec == "utf-8" else codec
    return FileRows(
        path, bounds, lambda content: json_row(str(path), content.decode(own)), lines.digest.hexdigest()
    )


def _csv(path: Path, encoding: str) -> IndexedRows | None:
    if (codec := _codec(path, encoding)) is None:
        return None
    with path.open("rb") as file, any_cell_length():
        lines = _Lines(file, codec)
        text = iter(lines)
        first, skipped = next(text), 0
        separator = other_separator(path, first) or ","
        if first.startswith("sep=") and first[5:].strip() == "":
            separator, first, skipped = first[4], next(text), 1
        reader = csv.reader(_again(first, text), delimiter=separator, strict=True)
        header, bounds, start = next(reader), array("Q"), 0
        start = lines.position
        unnamed = {i: (i == 0, True) for i, name in enumerate(header) if not name.strip()}
        for count, (_, cells) in enumerate(records(path, reader, header, separator, skipped)):
            for i, (counts, empty) in unnamed.items():
                unnamed[i] = counts and cells[i] == str(count), empty and not cells[i].strip()
            bounds.append(start)
            start = lines.position
    bounds.append(start)
    # Columns without a name as `named_columns` sees them: numbers from 0 on, or nothing.
    ok = all(counts or empty for counts, empty in unnamed.values())
    named = named_columns(path, header, []) if ok else None

    def parse(content: bytes) -> Row:
        with any_cell_length() if len(content) > csv.field_size_limit() else contextlib.nullcontext():
            found = csv.reader(
                io.StringIO(content.decode(codec), newline=""), delimiter=separator, strict=True
            )
            cells = next(cells for cells in found if cells)
        return {header[i]: cells[i] for i in named or ()}

    return None if named is None else FileRows(path, bounds, parse, lines.digest.hexdigest())


def _again(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _parquet(path: Path, encoding: str) -> IndexedRows | None:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows < MANY:
                return None
            place, name = tempfile.mkstemp(prefix="softprompt-", suffix=".arrow")
            starts, count = array("Q"), 0
            try:
                with (
                    os.fdopen(place, "wb") as sink,
                    pyarrow.ipc.new_file(sink, file.schema_arrow) as writer,
                ):
                    for batch in file.iter_batches(batch_size=_ARROW_ROWS):
                        starts.append(count)
                        writer.write_batch(batch)
                        count += len(batch)
                reader = pyarrow.ipc.open_file(pyarrow.memory_map(name))
            finally:
                with contextlib.suppress(OSError):  # mapped, it can be read without a name, except on Windows
                    Path(name).unlink()
    except pyarrow.ArrowException:
        return None
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return ArrowRows(reader, starts, count, digest)
