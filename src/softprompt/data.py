"""Data sets -> rows -> batches. A row is a dictionary from column name to value."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import reprlib
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from softprompt.image_folders import has_splits, read_image_folder

Row = Mapping[str, Any]

Rows = Sequence[Row] | str | Path

RowT = TypeVar("RowT", bound=Mapping[str, Any])


def load_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    encoding: str = "utf-8",
) -> list[dict[str, Any]]:
    """Rows of a data set.

    source    rows themselves (a list of dictionaries, a `datasets.Dataset`); a .csv, .tsv, .jsonl, .json or
              .parquet file; a folder with a folder of images for each class, or with such folders for each
              split; the name of a built-in data set (`softprompt fetch --list`); or the id of a data set
              on the hub, "owner/name" or "owner/name:configuration"
    split     "train", "test" ...; rows and files have none
    limit     at most so many rows, drawn with `seed`
    encoding  of text files

    Values of .csv and .tsv files are strings. A .tsv file has no quoting: a quote is a character like any
    other.
    Raises ValueError for a file that is empty, ragged, damaged or not in `encoding`, for data without rows,
    and for an unknown split; TypeError for rows that are no mappings; FileNotFoundError; ConnectionError if
    the hub is out of reach.
    """
    if isinstance(source, str | Path):
        rows = _from_name(source, split, encoding)
    else:
        if split is not None:
            raise ValueError(
                f"split={split!r} was asked for, but a list of rows has no splits: leave split out"
            )
        rows = _checked(source)
    if not rows:
        raise ValueError(
            f"no rows in {source if isinstance(source, str | Path) else 'the list that was given'}"
        )
    return rows if limit is None else subsample(rows, limit, seed)


def names_file(source: str | Path) -> bool:
    """Whether `load_rows` takes this for a file or folder without splits, not for a built-in or a hub data set."""
    path = Path(source)
    return path.suffix in _READERS or path.is_file() or (path.is_dir() and not has_splits(path))


def _from_name(source: str | Path, split: str | None, encoding: str) -> list[dict[str, Any]]:
    path = Path(source)
    if path.is_dir():
        return read_image_folder(path, split)
    if names_file(path):
        if path.suffix not in _READERS:
            raise ValueError(f"{path}: suffix {path.suffix!r} is not known; known are {', '.join(_READERS)}")
        if split is not None:
            raise ValueError(
                f"split={split!r} was asked for, but the file {path} has no splits: leave split out"
            )
        return _from_file(path, encoding)

    from softprompt import zoo  # it brings the table of archives, which few callers need

    if str(source) in zoo.names():
        if split is None:
            raise ValueError(
                f'the built-in data set {str(source)!r} has splits: say which, as in split="train"'
            )
        return [dict(row) for row in zoo.load_rows(str(source), split)]
    return _from_hub(str(source), split, zoo.names())


def _from_file(path: Path, encoding: str) -> list[dict[str, Any]]:
    if not path.is_file():
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
        raise FileNotFoundError(f"there is no file {path}" + (f"; did you mean {near[0]!r}?" if near else ""))
    content = path.read_bytes()
    if not content:
        raise ValueError(
            f"{path} is empty (0 bytes), expected rows with named columns: write it again, or name another file"
        )
    rows = _READERS[path.suffix](path, content, encoding)
    if not rows:
        raise ValueError(
            f"{path} has no rows" + (" under its header" if path.suffix in (".csv", ".tsv") else "")
        )
    return rows


def _decoded(path: Path, content: bytes, encoding: str) -> str:
    try:
        # Spreadsheets put a byte-order mark at the front, which would become part of the first column's name.
        return content.decode("utf-8-sig" if encoding.lower().replace("_", "-") == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not {encoding}: byte 0x{content[error.start]:02x} at position {error.start};"
            " save it as UTF-8, or say what it is, for example cp1252 (Western Windows): load_rows(file, encoding=...) in"
            " Python, `encoding:` beside `source:` in a YAML file"
        ) from error


def _read_csv(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    text = _decoded(path, content, encoding)
    if path.suffix == ".tsv":
        # GLUE's files have lone quotes; read as quoting they would swallow the rows up to the next quote.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    field_limit = csv.field_size_limit(sys.maxsize)  # 131,072 characters otherwise: some documents are longer
    try:
        header = next(reader, [])
        repeated = sorted({name for name in header if header.count(name) > 1})
        if repeated or not all(name.strip() for name in header):
            raise ValueError(
                f"{path}: each column needs a name of its own in the first line, which is {header}"
            )
        rows = []
        for cells in reader:
            if not cells:  # a blank line
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells under {len(header)} columns"
                    f" {header}; in a .csv file quote cells that hold a comma, a quote or a line end,"
                    " and let no cell of a .tsv file hold a tab"
                )
            rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: {error}; is a quote missing or doubled?"
        ) from error
    finally:
        csv.field_size_limit(field_limit)
    return rows


def _read_jsonl(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    rows = []
    # Not splitlines(): it also splits at U+2028 and its like, which may stand inside a JSON string.
    for number, line in enumerate(_decoded(path, content, encoding).split("\n"), start=1):
        if not line.strip():
            continue
        row = _json(f"{path}, line {number}", line)
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object {{...}}, found {reprlib.repr(row)}")
        rows.append(row)
    return rows


def _read_json(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    rows = _json(str(path), _decoded(path, content, encoding))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected a list of objects [{{...}}, ...], found {reprlib.repr(rows)}")
    return rows


def _json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no valid JSON: {error}") from error


def _read_parquet(path: Path, content: bytes, encoding: str) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is no readable parquet file: {error}") from error
    return rows


_READERS: dict[str, Callable[[Path, bytes, str], list[dict[str, Any]]]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}


def _from_hub(source: str, split: str | None, built_ins: Sequence[str]) -> list[dict[str, Any]]:
    import datasets

    name, _, configuration = source.partition(":")
    near = difflib.get_close_matches(source, built_ins, n=1)
    remedy = f"did you mean the built-in {near[0]!r}?" if near else f"built-in are {list(built_ins)}"
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(
            f"{source!r} is no file, no built-in data set and no data set on the hub; {remedy}"
        ) from error
    except OSError as error:  # requests' and the hub's connection errors are OSErrors
        raise ConnectionError(
            f"{source!r} is no file and no built-in data set, and the hub was not reached for it"
            f" ({type(error).__name__}: {error}); check the connection or HF_HUB_OFFLINE; {remedy}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return _checked(_undecoded(loaded))
    if len(loaded) > 1:
        raise ValueError(
            f"data set {source!r} has the splits {list(loaded)}: say which, as in"
            f" split={next(iter(loaded))!r}"
        )
    return _checked(_undecoded(next(iter(loaded.values()))))


def _undecoded(data: Any) -> Any:
    """A data set of the library datasets whose images stay files: smaller, and one that is damaged is named when it is read."""
    import datasets

    for name, feature in data.features.items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def _checked(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    checked = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {index} is a {type(row).__name__} ({reprlib.repr(row)}), expected a dictionary from"
                ' column to value; a pandas frame gives them with frame.to_dict("records")'
            )
        checked.append(dict(row))
    return checked


def subsample(rows: Sequence[RowT], n: int, seed: int, stratify: str | None = None) -> list[RowT]:
    """At most `n` rows, drawn without replacement, in their original order; the same for the same seed.

    stratify: a column whose values keep their shares (largest remainders, ties by order of appearance).
    Raises ValueError for n < 1, or if a row lacks the column.
    """
    if n < 1:
        raise ValueError(f"n={n}: expected 1 row or more")
    if n >= len(rows):
        return list(rows)
    if stratify is None:
        return [rows[i] for i in sorted(_permutation(len(rows), seed)[:n])]

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
    rank = {index: place for place, index in enumerate(_permutation(len(rows), seed))}
    drawn = [
        i for value, indices in groups.items() for i in sorted(indices, key=rank.__getitem__)[: counts[value]]
    ]
    return [rows[i] for i in sorted(drawn)]


def _permutation(n: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(n, generator=generator).tolist()
    return order


def batches(n_rows: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of an epoch: every row once, shuffled; the last batch may be short.

    A pure function of its arguments, so a run that resumes in the middle of an epoch sees the rows it would
    have seen.
    Raises ValueError for batch_size < 1.
    """
    # Any mixing that keeps (seed, epoch) pairs apart will do; 1,000,003 is above any count of epochs.
    order = _permutation(n_rows, (seed * 1_000_003 + epoch) % 2**63)
    return _chunks(order, batch_size)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices in batches of similar length, longest first: if memory runs out, it does so at once.

    Raises ValueError for batch_size < 1.
    """
    return _chunks(sorted(range(len(lengths)), key=lambda i: -lengths[i]), batch_size)


def _chunks(order: list[int], batch_size: int) -> list[list[int]]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def read_rows(source: Rows, split: str | None = None) -> list[Row]:
    """Rows from a list of dictionaries or anything that `load_rows` reads."""
    return list(load_rows(source, split))
