"""Files that are written whole or not at all, and values that JSON can hold."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 to a temporary name, then rename. Raises OSError if the file cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename. Raises OSError if the file cannot be written."""
    temporary = path.with_name(f".{path.name}.part")
    with unwritable_explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def unwritable_explained(path: Path) -> Iterator[None]:
    """Within the block an OSError says that `path` could not be written, that nothing was lost, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(  # the number chooses the same subclass of OSError
            error.errno,
            f"could not write {path}: {error.strerror or error}. What was there before is unchanged. "
            "Free the disk, change the permissions of the folder that holds it, or choose another place",
        ) from error


def finite(value: Any) -> Any:
    """A copy with None in place of numbers that JSON does not have (nan, inf)."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
