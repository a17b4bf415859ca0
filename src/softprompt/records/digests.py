"""Digests that identify rows, files and results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from softprompt.data.image_folders import SUFFIXES


def rows_digest(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of rows in their order; images count by their content, not by their path."""
    text = json.dumps([_plain(dict(row)) for row in rows], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """A form of the value that is the same on every machine and in every process: an image becomes its bytes."""
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
    """sha256 of the tensors in a saved prompt's folder."""
    sha = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        sha.update(path.read_bytes())
    return sha.hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a file, which may be larger than memory. Raises OSError if it cannot be read."""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def object_digest(value: Mapping[str, Any]) -> str:
    """sha256 of plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
