"""A folder of files that is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from softprompt.files import fsync_folder, is_abandoned, lock, named, unwritable_explained

log = logging.getLogger(__name__)

_PATIENCE = (
    60.0  # seconds that a save waits for another one into the same place, whose renames take milliseconds
)


def standing(folder: Path) -> Path:
    """The path of the folder's last complete content.

    This is `folder` itself, unless an overwrite was interrupted between its two renames: then it is the folder beside it
    that holds the earlier content.
    """
    previous = _previous(named(folder))
    if folder.exists() or not previous.exists():
        return folder
    log.warning(
        "%s was being replaced when the process ended: what it held before is read from %s", folder, previous
    )
    return previous


def replace_folder(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Make `folder` hold exactly these files.

    folder     to write
    files      content by name
    overwrite  whether a folder that is not empty may be replaced

    Whenever this is interrupted, `standing` gives either the old content or the new, whole. After an error it gives the
    old content, and nothing else is left behind; what killed processes left is removed. Of two processes that write at
    once one comes after the other, as if it had been started later.
    Raises FileExistsError if the folder is not empty and `overwrite` is False, or if it holds anything but
    `files`, which overwriting would delete; OSError (of the kind that the system gave) if it cannot be
    written.
    """
    folder = Path(os.path.realpath(named(folder)))  # a link is resolved, so that it survives the renames
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    with unwritable_explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as cleanup:
        with _alone_in(folder.parent):
            with unwritable_explained(folder):
                _finish_interrupted_overwrite(folder)
                _sweep(folder)
            _refuse_to_delete(folder, set(files), overwrite)
            cleanup.callback(shutil.rmtree, temporary, ignore_errors=True)
            with unwritable_explained(folder):
                temporary.mkdir()
                cleanup.enter_context(_locked(temporary))  # another process sweeps it no more
        with unwritable_explained(folder):
            _write(temporary, files)
        with _alone_in(folder.parent):
            _refuse_to_delete(folder, set(files), overwrite)  # another process may have written it meanwhile
            with unwritable_explained(folder):
                _take_place(temporary, folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """Within the block the folder is open, and locked as far as the system can; None: it cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield None
        return
    try:
        lock(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Within the block no other process that writes or renames by this function does so in the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders; what else is wrong the writing says
        yield
        return
    try:
        waited = time.monotonic()
        while lock(descriptor) is False:
            if time.monotonic() - waited > _PATIENCE:
                raise OSError(
                    errno.EBUSY,
                    f"{folder} is locked by another process, which has been saving there for {_PATIENCE:.0f} seconds: "
                    "wait for it or end it, then save again",
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left beside the folder: its temporary folders that nobody writes to."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[0-9a-f]{{8}}\.tmp")
    found: list[Path] = []
    with contextlib.suppress(OSError):  # a folder may be written to and not be listed
        found = [path for path in folder.parent.iterdir() if ours.fullmatch(path.name)]
    for path in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            try:
                if is_abandoned(descriptor):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(descriptor)


def _previous(folder: Path) -> Path:
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.previous")


def _finish_interrupted_overwrite(folder: Path) -> None:
    previous = _previous(folder)
    if not previous.exists():
        return
    if folder.exists():
        shutil.rmtree(previous)
    else:
        previous.rename(folder)


def _refuse_to_delete(folder: Path, ours: set[str], overwrite: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, where a folder is to be written; choose another name")
    found = {path.name for path in folder.iterdir()}
    if found and not overwrite:
        raise FileExistsError(
            f"{folder} already exists and holds {_listed(found)}; pass overwrite=True to replace it, "
            "or choose another folder"
        )
    if found - ours:
        raise FileExistsError(
            f"{folder} also holds {_listed(found - ours)}, which overwriting would delete; "
            "move that elsewhere, or choose another folder"
        )


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    fsync_folder(folder)


def _take_place(temporary: Path, folder: Path) -> None:
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    if not folder.exists():
        temporary.rename(folder)
        fsync_folder(folder.parent)
        return
    # No portable call exchanges two folders, and a rename does not replace a folder that holds files. So there are two
    # renames: the old folder gets a fixed other name, then the new one gets its name. After a crash between them the
    # folder is missing; `standing` finds the old one under the other name, and the next write puts it back.
    previous = _previous(folder)
    folder.rename(previous)
    try:
        temporary.rename(folder)
    except BaseException:
        previous.rename(folder)
        raise
    fsync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)  # the next write deletes what may remain


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
