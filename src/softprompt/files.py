"""Files that are written whole or not at all and read within bounds, and values that JSON can hold."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import reprlib
import secrets
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

JSON_LIMIT = 64 * 2**20
"""Bytes that a JSON or YAML file of ours may have. The largest that is written has a few million."""

_TEMPORARY = re.compile(r"\.softprompt-[0-9a-f]{16}\.part")

_DAY = 24 * 3600.0


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 to a temporary name, then rename. Raises OSError if the file cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name, then rename. Raises OSError if the file cannot be written."""
    with unwritable_explained(path), replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write to, which becomes `path` at the end of the block; after an error nothing has changed.

    The file lies in the same folder under a random name, which must not exist before: no link that somebody put there is
    followed. A library that wants a name takes `file.name`. Content and name are forced to the disk. What killed
    processes left in the folder under such names is removed.
    Raises OSError if the file cannot be written.
    """
    sweep(path.parent)
    file = _new_file(path.parent)
    temporary = Path(file.name)
    try:
        yield file
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
        if sys.platform == "win32":
            file.close()  # an open file cannot be renamed there
        os.replace(temporary, path)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    file.close()
    fsync_folder(path.parent)


def put_in_place(finished: Path, path: Path) -> None:
    """Rename a file or a folder, with all that is in it, which was written in several runs. Both are forced to the disk."""
    for root, _, names in os.walk(finished):
        for name in names:
            _fsync_file(Path(root, name))
        fsync_folder(Path(root))
    if not finished.is_dir():
        _fsync_file(finished)
    os.replace(finished, path)
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut, if the system can: Windows cannot open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed, or the process ends in any way.

    Returns True if it is locked now, False if another process or thread has it, None where the system has no such locks.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network drives
        return None
    return True


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder: those of ours that nobody writes to."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [entry.path for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for path in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(
                path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
            try:
                is_free = is_abandoned(descriptor)
                if is_free and sys.platform != "win32":
                    os.unlink(path)  # noqa: PTH108 - while the lock is held
            finally:
                os.close(descriptor)
            if is_free and sys.platform == "win32":
                os.unlink(path)  # noqa: PTH108


def is_abandoned(descriptor: int) -> bool:
    """Whether nobody writes to an open temporary file or folder; it is locked then. Without locks its age decides."""
    is_free = lock(descriptor)
    if is_free is None:
        return time.time() - os.fstat(descriptor).st_mtime > _DAY
    return is_free


def _new_file(folder: Path) -> BinaryIO:
    while True:
        file = open(folder / f".softprompt-{secrets.token_hex(8)}.part", "xb")  # noqa: SIM115 - the caller closes it
        # Another process may have swept it in the moment before it was locked: then there is no such file any more.
        if lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _fsync_file(path: Path) -> None:
    with open(path, "rb+" if sys.platform == "win32" else "rb") as file:
        os.fsync(file.fileno())


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The content of a file. limit: bytes that it may have.

    Raises ValueError for a file that is too large, and for a device, a pipe or a socket, which may have no end, also
    behind a link; OSError if the file cannot be read.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path} is a device or a pipe, expected a regular file")
        content = file.read() if limit is None else file.read(limit + 1)
    if limit is not None and len(content) > limit:
        raise ValueError(
            f"{path} has {max(status.st_size, len(content)):,} bytes, expected at most {limit:,}: it is not what its name"
            " says, or damaged"
        )
    return content


def read_text(path: Path) -> str:
    """The UTF-8 text of a JSON or YAML file of ours. Raises as `read_bytes` does, with `JSON_LIMIT`."""
    return read_bytes(path, JSON_LIMIT).decode()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON file of ours, in UTF-8. Raises ValueError for a key that stands twice and for a byte order mark:
    two programs would read two things in it."""
    return json.loads(text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_unrepeated)


def _unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = next(key for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {reprlib.repr(repeated)} stands twice")
    return found


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(
        path, flags | getattr(os, "O_NONBLOCK", 0)
    )  # else the opening of a pipe waits for a writer


def named(folder: str | Path) -> Path:
    """The path of a folder. Raises ValueError for a null character in it, of which systems say no more than that."""
    if "\0" in str(folder):
        raise ValueError(f"the folder {str(folder)!r} has a null character in its name: give another name")
    return Path(folder)


@contextlib.contextmanager
def unwritable_explained(path: Path) -> Iterator[None]:
    """Within the block an OSError says that `path` could not be written, that nothing was lost, and what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(  # the number chooses the same subclass of OSError
            error.errno,
            f"could not write {path}: {error.strerror or error}. What was there before is unchanged. "
            + (
                "Choose a shorter name"
                if error.errno == errno.ENAMETOOLONG
                else "Free the disk, change the permissions of the folder that holds it, or choose another place"
            ),
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
