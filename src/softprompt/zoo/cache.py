"""Built-in models and data sets as folders in the cache: `fetch` and `load_rows`."""

import difflib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from filelock import FileLock

from softprompt.files import put_in_place, read_text
from softprompt.zoo.archives import Archive, is_packed, pack_members, packed_path
from softprompt.zoo.download import download
from softprompt.zoo.rows import SPLITS, read_rows
from softprompt.zoo.table import BUILT_INS, BuiltIn

# Names in existing caches, from versions that called a built-in a carrier.
_FOLDER, _MARKER, _NAME = "carriers", "carrier.json", "carrier"


def cache_dir() -> Path:
    """The folder of softprompt's caches: $SOFTPROMPT_CACHE, or else one in the user's cache folder."""
    if place := os.environ.get("SOFTPROMPT_CACHE"):
        return Path(place).expanduser()
    if sys.platform == "win32":
        home = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        home = Path.home() / "Library" / "Caches"
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "softprompt"


def _identity(entry: BuiltIn) -> dict[str, Any]:
    others = {"beside": [archive.sha256 for archive in entry.beside]} if entry.beside else {}
    return {_NAME: entry.name, "sha256": entry.archive.sha256, "version": entry.version, **others}


def _is_current(entry: BuiltIn, folder: Path) -> bool:
    """Whether the folder was made from this archive by this version of the conversion, and is complete."""
    try:
        marker = json.loads(read_text(folder / _MARKER))
        return _identity(entry).items() <= marker.items() and all(
            (folder / name).stat().st_size == size for name, size in marker["files"].items()
        )
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _write_marker(entry: BuiltIn, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    archive = entry.archive
    marker = {
        **_identity(entry),
        "package": f"{archive.package} {archive.version} ({archive.registry})",
        "description": entry.description,
        "licence": entry.licence,
        "files": {path.relative_to(folder).as_posix(): path.stat().st_size for path in files},
    }
    (folder / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def _lock_path(name: str) -> Path:
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.lock"


def _obtain(archive: Archive, *, needed_by: str, progress: bool, keep_archive: bool) -> Path:
    """The checked archive in the cache, or the zip file with its `keep_only` members."""
    folder = cache_dir() / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    target, lock = folder / archive.filename, _lock_path(archive.filename)
    if not archive.keep_only:
        return download(archive, target, lock, needed_by=needed_by, progress=progress)
    packed = packed_path(archive, folder)
    with FileLock(_lock_path(packed.name)):
        if not is_packed(archive, packed):
            download(archive, target, lock, needed_by=needed_by, progress=progress)
            pack_members(archive, target, packed)
            if not keep_archive:
                target.unlink()
    return packed


def fetch_built_in(entry: BuiltIn, *, progress: bool = True, keep_archive: bool = False) -> Path:
    """`fetch` for a built-in that need not be in the table."""
    folder = cache_dir() / _FOLDER / entry.name
    if _is_current(entry, folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_path(entry.name)):
        if _is_current(entry, folder):  # another process was first
            return folder
        sources = [
            _obtain(archive, needed_by=entry.name, progress=progress, keep_archive=keep_archive)
            for archive in (entry.archive, *entry.beside)
        ]
        partial = folder.with_name(f".{entry.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        source, *beside = sources
        entry.convert(source, partial, *beside)
        _write_marker(entry, partial)
        if folder.exists():  # made by another version, or damaged; a folder cannot be renamed over a full one
            old = folder.with_name(f".{entry.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
            shutil.rmtree(old, ignore_errors=True)
        put_in_place(partial, folder)
    return folder


def find_built_in(name: str) -> BuiltIn:
    """The built-in with this name. Raises ValueError with the nearest name and all names if there is none."""
    if name in BUILT_INS:
        return BUILT_INS[name]
    near = difflib.get_close_matches(name, BUILT_INS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"no built-in model or data set is called {name!r}.{hint} There are {', '.join(BUILT_INS)}"
    )


def is_cached(name: str) -> bool:
    """Whether a built-in is in the cache, complete and written by today's conversion. Raises ValueError for an unknown name."""
    entry = find_built_in(name)
    return _is_current(entry, cache_dir() / _FOLDER / entry.name)


def fetch(name: str, *, progress: bool = True, keep_archive: bool = False) -> Path:
    """The folder of a built-in model or data set in the cache, downloaded and converted if it is not there yet.

    A model's folder is one for `from_pretrained`; a data set's holds train, validation and test .jsonl files.
    A folder that an older conversion wrote is written again. Of a large archive only the members that are
    needed stay in the cache, unless `keep_archive`. Safe when several processes call it at once.
    Raises ValueError for an unknown name, FetchError if a download fails.
    """
    return fetch_built_in(find_built_in(name), progress=progress, keep_archive=keep_archive)


def load_rows(name: str, split: str) -> list[dict[str, str]]:
    """Rows of one split ("train", "validation" or "test") of a built-in data set, in a fixed order; images as paths.

    Fetches the data set if need be. Raises ValueError for an unknown name or split and for a model, and
    FetchError if a download fails.
    """
    entry = find_built_in(name)
    if entry.kind != "data":
        data = ", ".join(other.name for other in BUILT_INS.values() if other.kind == "data")
        raise ValueError(f"{name!r} is a model and has no rows; data sets are {data}")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    folder = fetch(name)
    found = read_rows(folder / f"{split}.jsonl")
    if "image" in entry.columns:  # within the folder, which may lie elsewhere tomorrow
        found = [{**row, "image": str(folder / row["image"])} for row in found]
    return found
