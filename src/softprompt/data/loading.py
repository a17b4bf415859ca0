"""Rows by the name of a data set: a file, a folder, a built-in data set or one on the hub."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.data.drawing import subsample
from softprompt.data.files import is_table, read_file
from softprompt.data.image_folders import has_splits, read_image_folder
from softprompt.data.indexed import MANY, IndexedRows, indexed_file
from softprompt.data.rows import Row, Rows, rows_from, viewed


def load_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    split: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    *,
    encoding: str = "utf-8",
) -> list[dict[str, Any]]:
    """Rows of a data set.

    source    rows themselves: a list of dictionaries, a Dataset or DatasetDict of the library datasets, a pandas or polars
              frame; a .csv, .tsv, .jsonl, .json or .parquet file, also compressed (.csv.gz ...); a folder that
              `Dataset.save_to_disk` wrote; a folder with a folder of images for each class, or with such folders for each
              split; the name of a built-in data set (`softprompt.zoo.names()`); or the id of a data set on the hub,
              "owner/name" or "owner/name:configuration"
    split     which split to read, e.g. "test"; rows and files have none
    limit     the largest number of rows, which are drawn with `seed`
    encoding  of text files

    `softprompt.data.files.read_file` describes how files are read.
    Raises ValueError for a file that is empty, ragged, damaged or not in `encoding`, for data without rows, and for an
    unknown split; TypeError for rows that are no mappings; FileNotFoundError; ConnectionError if the hub is out of reach.
    """
    named = isinstance(source, str | Path)
    rows: Sequence[dict[str, Any]] | None = None
    if isinstance(source, str | Path) and split is None and limit is not None:
        rows = indexed_file(
            Path(source), encoding
        )  # of a large file the rows that are drawn are read, and no more
    if rows is None:
        rows = (
            _from_name(source, split, encoding)
            if isinstance(source, str | Path)
            else rows_from(source, split)
        )
    if not rows:
        raise ValueError(f"no rows in {source if named else 'the list that was given'}")
    return list(rows) if limit is None else subsample(rows, limit, seed)


def read_rows(source: Rows, split: str | None = None) -> list[Row]:
    """Rows from a list of dictionaries or anything that `load_rows` reads."""
    return list(load_rows(source, split))


def open_rows(source: Rows, split: str | None = None, *, encoding: str = "utf-8") -> Sequence[Row]:
    """The rows that `load_rows` reads. Those of a large file, a Dataset or a long list are read when they are asked for.

    Of an IterableDataset, whose rows have no numbers, and of a compressed file all rows are read at once.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        found = indexed_file(path, encoding) if split is None else None
        if found is None and _is_saved(path):
            found = _from_saved(path, split)
        return load_rows(source, split, encoding=encoding) if found is None else found
    rows = viewed(source, split)
    return rows if len(rows) >= MANY else load_rows(source, split)


def names_file(source: str | Path) -> bool:
    """Whether `load_rows` reads this as a file or folder without splits, and not as a built-in or a hub data set."""
    path = Path(source)
    if path.is_dir():
        return not (has_splits(path) or (path / _SAVED_SPLITS).is_file())
    return is_table(path) or path.is_file()


_SAVED, _SAVED_SPLITS = "dataset_info.json", "dataset_dict.json"  # in folders that `save_to_disk` wrote


def _from_name(source: str | Path, split: str | None, encoding: str) -> list[dict[str, Any]]:
    path = Path(source)
    if path.is_dir():
        if _is_saved(path):
            return [*_from_saved(path, split)]
        return read_image_folder(path, split)
    if names_file(path):
        if split is not None:
            raise ValueError(
                f"split={split!r} was asked for, but the file {path} has no splits: leave split out"
            )
        return read_file(path, encoding)

    from softprompt import zoo  # it brings the table of archives, which few callers need

    if str(source) in zoo.names():
        if split is None:
            raise ValueError(
                f'the built-in data set {str(source)!r} has splits: say which, as in split="train"'
            )
        return [dict(row) for row in zoo.load_rows(str(source), split)]
    if not _HUB_ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"there is no file or folder {str(source)!r}"
            + (f" (looked for from {Path.cwd().name}/)" if not path.is_absolute() else "")
            + _beside(path)
        )
    return _from_hub(str(source), split, zoo.names())


_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:.+)?")  # "owner/name:configuration"


def _beside(path: Path) -> str:
    """What stands beside a path that is not there, if something has nearly its name."""
    try:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1)
    except OSError:
        return ""
    return f"; did you mean {near[0]!r}?" if near else ""


def _is_saved(path: Path) -> bool:
    return (path / _SAVED).is_file() or (path / _SAVED_SPLITS).is_file()


def _from_saved(path: Path, split: str | None) -> IndexedRows:
    import datasets

    try:
        return viewed(datasets.load_from_disk(str(path)), split)
    except OSError as error:
        raise ValueError(f"{path} is not a complete folder of Dataset.save_to_disk: {error}") from error


def _from_hub(source: str, split: str | None, builtin: Sequence[str]) -> list[dict[str, Any]]:
    import datasets

    name, _, configuration = source.partition(":")
    near = difflib.get_close_matches(source, builtin, n=1)
    remedy = (
        f"did you mean the built-in {near[0]!r}?"
        if near
        else f"built-in data sets and models are {list(builtin)}"
    )
    try:
        loaded = datasets.load_dataset(name, configuration or None, split=split)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise ValueError(
            f"{source!r} is not a file, not built in, and not a data set on the hub; {remedy}"
        ) from error
    except OSError as error:  # requests' and the hub's connection errors are OSErrors
        raise ConnectionError(
            f"{source!r} is not a file and not built in, and the hub was not reached"
            f" ({type(error).__name__}: {error}); check the connection or HF_HUB_OFFLINE; {remedy}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return rows_from(loaded)
    if len(loaded) > 1:
        raise ValueError(
            f"data set {source!r} has the splits {list(loaded)}: say which, as in split={next(iter(loaded))!r}"
        )
    return rows_from(next(iter(loaded.values())))
