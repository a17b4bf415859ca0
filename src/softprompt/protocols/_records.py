"""Finished runs in a JSON file, so that a killed study goes on where it was. One process writes a file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from softprompt.data import Row, Rows, names_file, read_rows
from softprompt.data.image_folders import SUFFIXES
from softprompt.files import write_text

Record = dict[str, Any]


def once(file: Path | None, key: str, settings: Mapping[str, Any], work: Callable[[], Record]) -> Record:
    """What `work` gives, from the file if it has the run `key` already, else written there; None: no file.

    settings: plain JSON, everything that the result depends on.
    Raises ValueError for a file that holds no runs, or a run of that name with other settings.
    """
    if file is None:
        return work()
    wanted = json.loads(json.dumps(settings))
    if found := read_object(file).get(key):
        if found["settings"] != wanted:
            differing = [name for name in wanted if wanted[name] != found["settings"].get(name)]
            raise ValueError(
                f"{file} has a run {key!r} with other settings ({', '.join(differing)}): write to another file, or delete "
                "this one to run everything again"
            )
        return dict(found["record"])
    record = json.loads(json.dumps(work()))
    write_object(file, read_object(file) | {key: {"settings": wanted, "record": record}})
    return dict(record)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file. Raises ValueError if it holds anything else."""
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no readable JSON ({error}): delete it or name another file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}, expected an object: name another file")
    return value


def write_object(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def rows_of(source: Rows, split: str) -> list[Row]:
    """Rows, of a source with splits those of this one."""
    return read_rows(source, split if isinstance(source, str) and not names_file(source) else None)


def rows_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of rows in their order; of images what they show, wherever their files lie."""
    text = json.dumps([_plain(dict(row)) for row in rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """The same value on every machine and in every process: an image is its bytes, not its path or its address."""
    match value:
        case Mapping():
            return {name: _plain(part) for name, part in value.items()}
        # Path.is_file fails on texts that are too long to be a path.
        case str() | Path() if Path(value).suffix.lower() in SUFFIXES and os.path.isfile(value):  # noqa: PTH113
            return hashlib.sha256(Path(value).read_bytes()).hexdigest()
        case bytes():
            return hashlib.sha256(value).hexdigest()
        case Image.Image():
            return [value.mode, *value.size, hashlib.sha256(value.tobytes()).hexdigest()]
        case Tensor() | np.ndarray():
            array = np.ascontiguousarray(value)
            return [str(array.dtype), *array.shape, hashlib.sha256(array.data).hexdigest()]
        case _:
            return value


def folder_digest(folder: Path) -> str:
    """sha256 of what a saved prompt's folder holds."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        sha.update(path.read_bytes())
    return sha.hexdigest()
