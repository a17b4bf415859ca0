"""Rows of a file: .csv, .tsv, .jsonl, .json and .parquet, each also compressed with gzip (.csv.gz ...)."""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import logging
import reprlib
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_BOMS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATORS = (";", "\t", "|")
_SPREADSHEETS = (".xls", ".xlsx", ".xlsm", ".ods")


def suffix_of(path: Path) -> str:
    """The suffix that decides how a file is read, in lower case: `.csv` for REVIEWS.CSV and for reviews.csv.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]


def is_table(path: Path) -> bool:
    """Whether `read_file` reads a file with this suffix."""
    return suffix_of(path) in _READERS


def read_file(path: Path, encoding: str = "utf-8") -> list[dict[str, Any]]:
    """The rows of a file.

    encoding: of text files; one that begins with a byte-order mark of UTF-16 or UTF-32 is read as that.

    Values of .csv and .tsv files are strings. Cells are separated by commas (.csv) or tabs (.tsv), or by the
    separator in a first line such as `sep=;`. If commas leave the header in one piece, a semicolon, tab or bar that divides it
    is the separator. A column without a name is left out if it numbers the rows, as in pandas, or is empty. In a .tsv file a
    quote is an ordinary character, unless a whole column is quoted.

    Raises FileNotFoundError; ValueError for a file that is empty, ragged, damaged, not in `encoding` or of another kind,
    with its line.
    """
    suffix = suffix_of(path)
    if suffix not in _READERS:
        raise ValueError(f"{path}: {_other_kind(suffix)}")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is a folder, a device or a pipe, expected a regular file")
    if not path.is_file():
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        raise FileNotFoundError(f"there is no file {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    content = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            content = _unpacked(path, content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if not content:
        raise ValueError(
            f"{path} is empty (0 bytes), expected rows with named columns: write it again, or name another file"
        )
    if content.startswith(b"PK\x03\x04"):
        raise ValueError(f"{path} is a zip archive, perhaps an Excel workbook: {_SAVE_AS_CSV}")
    rows = _READERS[suffix](path, content, encoding)
    if not rows:
        raise ValueError(f"{path} has no rows" + (" under its header" if suffix in (".csv", ".tsv") else ""))
    return rows


def _unpacked(path: Path, content: bytes) -> bytes:
    """The content of a gzip file. Raises ValueError if it would fill the memory with hardly anything but repetition."""
    limit = max(_UNPACKED, _RATIO * len(content))
    with gzip.open(io.BytesIO(content)) as file:
        found = file.read(limit + 1)
    if len(found) > limit:
        raise ValueError(
            f"{path} has {len(content):,} bytes and unpacks to more than {limit:,}, expected rows of texts, which do not shrink"
            " so much: unpack it yourself if this is what it should hold"
        )
    return found


_UNPACKED, _RATIO = 64 * 2**20, 200  # bytes that are unpacked whatever the ratio; no text shrinks so much

_SAVE_AS_CSV = "save it as CSV UTF-8, or pass pandas.read_excel(...), a data frame, in Python"


def _other_kind(suffix: str) -> str:
    if suffix in _SPREADSHEETS:
        return f"workbooks are not read: {_SAVE_AS_CSV}"
    return f"suffix {suffix!r} is not known; known are {', '.join(_READERS)}, each also with .gz behind it"


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:  # a name may hold a NUL
        near = difflib.get_close_matches(encoding, ["utf-8", "utf-16", "cp1252", "latin-1", "ascii"], n=1)
        raise ValueError(
            f"{path}: {encoding!r} is not an encoding that Python knows"
            + (f"; did you mean {near[0]!r}?" if near else "")
        ) from error
    if name == "utf-8":
        marked = next((other for mark, other in _BOMS if content.startswith(mark)), None)
        # Spreadsheets put a byte-order mark at the front, which would become part of the first column's name.
        name = marked or "utf-8-sig"
    try:
        return content.decode(name)
    except LookupError as error:
        raise ValueError(f"{path}: {encoding!r} is not a text encoding") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding}: byte 0x{content[error.start]:02x} at position {error.start}, line"
            f" {content.count(10, 0, error.start) + 1}; save it as UTF-8, or name its encoding, for example cp1252 (Western"
            " Windows): load_rows(file, encoding=...) in Python, `encoding:` beside `source:` in a YAML file, --encoding on"
            " the command line"
        ) from error
    except UnicodeError as error:
        raise ValueError(f"{path} is not {encoding}: {error}") from error


def _read_csv(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    text = _decoded(path, content, encoding)
    skipped = 0
    separator = "\t" if suffix_of(path) == ".tsv" else ","
    if text.startswith("sep=") and text[4:5] and text[5:6] in ("\n", "\r"):  # Excel's
        separator, skipped = text[4], 1
        text = text[5:].removeprefix("\r").removeprefix("\n")
    elif separator == "," and (other := other_separator(path, text)) is not None:
        log.info("%s: columns are separated by %r", path, other)
        separator = other
    header, lines = _cells(path, text, separator, skipped)
    named = named_columns(path, header, lines)
    return [{header[i]: cells[i] for i in named} for _, cells in lines]


def other_separator(path: Path, text: str) -> str | None:
    """The separator of a file if commas do not divide its header; None: commas, or a single column."""
    first = text.splitlines()[0] if text.splitlines() else ""
    if len(next(csv.reader([first]), [])) > 1:
        return None
    counts = {other: len(next(csv.reader([first], delimiter=other), [])) for other in _SEPARATORS}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] > 1 else None


def _cells(
    path: Path, text: str, separator: str, skipped: int
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and for each line that is not blank its number and its cells, as many as the header has."""
    if separator == "\t" and suffix_of(path) == ".tsv" and not _is_quoted(text):
        # GLUE's files have lone quotes; read as quoting they would swallow the rows up to the next quote.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    with any_cell_length():
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise _unreadable(path, reader.line_num + skipped, error) from error
        if any("\0" in name for name in header):
            raise ValueError(
                f"{path}, line {1 + skipped}: the first line has NUL characters, which names of columns never have; if the"
                " file is UTF-16 without a byte-order mark, name the encoding utf-16-le or utf-16-be, else write it again"
            )
        return header, list(records(path, reader, header, separator, skipped))


@contextmanager
def any_cell_length() -> Iterator[None]:
    """Within the block the csv module reads cells of any length: some documents are longer than 131,072 characters."""
    field_limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(field_limit)


def records(
    path: Path, reader: Any, header: Sequence[str], separator: str, skipped: int
) -> Iterator[tuple[int, list[str]]]:
    """Yield for each line of a csv reader that is not blank its number and its cells, as many as the header has.

    skipped: lines before the header. Raises ValueError, with the line.
    """
    try:
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) == len(header) + 1 and not cells[-1]:  # a separator at the end of the line
                cells = cells[:-1]
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num + skipped}: {len(cells)} cells under {len(header)} columns"
                    f" {_shown(header)}, separated by {separator!r}; in a .csv file quote cells that hold the separator, a"
                    " quote or a line end, and no cell of a .tsv file may hold a tab"
                )
            yield reader.line_num + skipped, cells
    except csv.Error as error:
        raise _unreadable(path, reader.line_num + skipped, error) from error


def _unreadable(path: Path, line: int, error: csv.Error) -> ValueError:
    return ValueError(f"{path}, line {line}: {error}; is a quote missing or doubled?")


def _is_quoted(text: str) -> bool:
    """Whether a column of a .tsv file has quotes around every value, as Excel and R write text."""
    lines = [line.split("\t") for line in text.splitlines()[1:] if line]
    if not lines or any(len(cells) != len(lines[0]) for cells in lines):
        return False

    def quoted(cell: str) -> bool:
        return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")

    return any(all(quoted(cells[i]) for cells in lines) for i in range(len(lines[0])))


def named_columns(path: Path, header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]]) -> list[int]:
    """Indices of the columns that have a name. Raises ValueError for a nameless one that holds data, and for equal names."""
    unnamed = [i for i, name in enumerate(header) if not name.strip()]
    for i in unnamed:
        values = [cells[i] for _, cells in lines]
        counts = i == 0 and values == [str(k) for k in range(len(values))]
        if not counts and any(value.strip() for value in values):
            raise ValueError(
                f"{path}: column {i + 1} has no name in the first line, which is {_shown(header)}; each column needs a name of"
                " its own (pandas leaves its index out with to_csv(..., index=False))"
            )
    if repeated := sorted(name for name, count in Counter(header).items() if name.strip() and count > 1):
        raise ValueError(
            f"{path}: each column needs a name of its own in the first line, which has {_shown(repeated)} more than once:"
            f" {_shown(header)}"
        )
    if unnamed:
        log.info("%s: columns without a name are left out: %s", path, [i + 1 for i in unnamed])
    left_out = set(unnamed)
    return [i for i in range(len(header)) if i not in left_out]


def _shown(names: Sequence[str]) -> str:
    """The names for a message: of very many or very long ones only the first."""
    first = [name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..." for name in names[:_NAMES]]
    return str(first) if len(names) <= _NAMES else f"{str(first)[:-1]}, ... {len(names) - _NAMES} more]"


_NAMES = 20
_LONGEST_NAME = 100  # characters


def _read_jsonl(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    text = _decoded(path, content, encoding)
    try:
        return _json_lines(path, text)
    except ValueError:
        if not text.lstrip().startswith("["):
            raise
        found = _parsed_or_none(text)  # a list, as a .json file holds it
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise
        return found


def _json_lines(path: Path, text: str) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines(): it also splits at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append(json_row(f"{path}, line {number}", line))
    return rows


def json_row(where: str, line: str) -> dict[str, Any]:
    """The row that a line of JSON holds. Raises ValueError, which begins with `where`."""
    row = _json(where, line)
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object {{...}}, found {reprlib.repr(row)}")
    return row


def _read_json(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    text = _decoded(path, content, encoding)
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) > 1 and isinstance(_parsed_or_none(lines[0]), dict):
        return _json_lines(path, text)  # what pandas' to_json(lines=True) and datasets' to_json write
    found = _json(str(path), text)
    return _objects(path, found)


def _objects(path: Path, rows: Any) -> list[dict[str, Any]]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects [{{...}}, ...], found {reprlib.repr(rows)}")
    return rows


def _parsed_or_none(text: str) -> Any:
    try:
        return _json("", text)
    except ValueError:
        return None


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unrepeated)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON: {error}") from error
    except RecursionError:
        raise ValueError(f"{where}: lists and objects are nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {reprlib.repr(repeated)} is there twice in one object")
    return found


def _read_parquet(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    return rows


_READERS: dict[str, Callable[[Path, bytes, str], list[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
