"""A folder of files that is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from softprompt.files import unwritable_explained


def standing(folder: Path) -> Path:
    """The path of the folder's last complete content.

    This is `folder` itself, unless an overwrite was interrupted between its two renames: then it is the folder beside it
    that holds the earlier content.
    """
    previous = _previous(folder)
    return previous if previous.exists() and not folder.exists() else folder


def replace_folder(folder: Path, files: Mapping[str, bytes], *, overwrite: bool) -> None:
    """Make `folder` hold exactly these files.

    folder     to write
    files      content by name
    overwrite  whether a folder that is not empty may be replaced

    Whenever this is interrupted, `standing` gives either the old content or the new, whole. After an error it gives the
    old content, and nothing else is left behind.
    Raises FileExistsError if the folder is not empty and `overwrite` is False, or if it holds anything but
    `files`, which overwriting would delete; OSError (of the kind that the system gave) if it cannot be
    written.
    """
    folder = Path(os.path.realpath(folder))  # a link is resolved, so that it survives the renames
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    with unwritable_explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _finish_interrupted_overwrite(folder)
    _refuse_to_delete(folder, set(files), overwrite)
    try:
        with unwritable_explained(folder):
            _write(temporary, files)
            _take_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
    folder.mkdir()
    for name, content in files.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _fsync_folder(folder)


def _take_place(temporary: Path, folder: Path) -> None:
    if folder.exists() and not any(folder.iterdir()):
        folder.rmdir()
    if not folder.exists():
        temporary.rename(folder)
        _fsync_folder(folder.parent)
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
    _fsync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)  # the next write deletes what may remain


def _fsync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut, if the system can: Windows cannot open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _listed(names: set[str]) -> str:
    shown = ", ".join(sorted(names)[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
