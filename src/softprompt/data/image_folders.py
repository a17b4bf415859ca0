"""Folders of images as rows: each class has a folder, whose name is the label."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

log = logging.getLogger(__name__)

SPLITS = ("train", "validation", "val", "test")
SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".heic",
        ".heif",
        ".jfif",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""Suffixes of image files. Pillow decides which of them can be read."""

_NOT_DATA = ("__MACOSX",)  # an additional folder in archives made on a Mac


def has_splits(folder: Path) -> bool:
    """Whether a folder has a folder for each split, which have a folder for each class.

    True if all its folders have names of splits, or if the other folders hold no image and those with names of splits hold no
    image beside folders. So a class may be called `test`.
    """
    inside = _folders_in(folder)
    splits = [path for path in inside if path.name in SPLITS]
    if len(splits) == len(inside):
        return bool(splits)
    others = [path for path in inside if path.name not in SPLITS]
    return (
        bool(splits)
        and not any(_is_image(file) for path in splits for file in path.iterdir())
        and not any(_is_image(file) for path in others for file in path.rglob("*"))
    )


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _entries(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".") and p.name not in _NOT_DATA)


def read_image_folder(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Rows {"image": path, "label": class} of FOLDER/CLASS/**/FILE or FOLDER/SPLIT/CLASS/**/FILE, in order of name.

    Splits are called train, validation, val or test, see `has_splits`. Files without the
    suffix of an image, names that begin with a dot and `__MACOSX` are skipped. So are images that the installed Pillow cannot
    read (.heic), with a warning in the log that counts them.
    Raises ValueError for a missing split, for a folder with splits if none is named, for a folder without classes, for a
    class without images, and for images beside the class folders.
    """
    if has_splits(folder):
        found = [name for name in SPLITS if (folder / name).is_dir()]
        if split is None:
            raise ValueError(f"{folder} has the splits {found}: say which, as in split={found[0]!r}")
        if split == "validation" and "validation" not in found:
            split = "val"
        if split not in found:
            raise ValueError(f"{folder} has no split {split!r}; it has {found}")
        folder = folder / split
    elif split is not None:
        raise ValueError(
            f"split={split!r} was asked for, but {folder} has no folder of this name: leave split out, or put the"
            f" class folders into {folder / split}"
        )
    entries = _entries(folder)
    if loose := [path.name for path in entries if _is_image(path)]:
        raise ValueError(
            f"{folder} holds images beside the class folders, such as {loose[0]!r}: put each into the folder of its class"
        )
    rows = []
    for kind in entries:
        if not kind.is_dir():
            continue
        files = _images_under(kind)
        if not files:
            raise ValueError(
                f"the class folder {kind} holds no image ({_readable_kinds()}): fill or remove it"
            )
        rows += [{"image": str(path), "label": kind.name} for path in files]
    if not rows:
        raise ValueError(f"{folder} has no class folders: expected FOLDER/CLASS/IMAGE")
    return rows


def image_files(place: Path) -> list[Path]:
    """All images under a folder, sorted by name; for a file, the file itself.

    Raises FileNotFoundError, and ValueError for a folder without images.
    """
    if not place.is_dir():
        if not place.exists():
            raise FileNotFoundError(
                f"there is no image or folder {place}; relative paths begin at the working folder, {Path.cwd()}"
            )
        return [place]
    files = _images_under(place)
    if not files:
        raise ValueError(f"the folder {place} holds no image ({_readable_kinds()})")
    return files


def image_paths(places: Sequence[str]) -> list[str]:
    """The `image_files` of several files and folders, as strings."""
    return [str(path) for place in places for path in image_files(Path(place))]


def _images_under(folder: Path) -> list[Path]:
    found = sorted(
        path for path in folder.rglob("*") if _is_image(path) and not _is_hidden(path.relative_to(folder))
    )
    if unreadable := [path for path in found if not _is_readable(path)]:
        kinds = sorted({path.suffix.lower() for path in unreadable})
        log.warning(
            "%s: %d images are skipped, the installed Pillow does not read %s",
            folder,
            len(unreadable),
            ", ".join(kinds),
        )
    return [path for path in found if _is_readable(path)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") or part in _NOT_DATA for part in path.parts)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _is_readable(path: Path) -> bool:
    return path.suffix.lower() in _readable_suffixes()


def _readable_kinds() -> str:
    return ", ".join(sorted(_readable_suffixes()))


@cache
def _readable_suffixes() -> frozenset[str]:
    """The suffixes of images that the installed Pillow, with its plugins, can open."""
    kinds = Image.registered_extensions()
    return frozenset(suffix for suffix in SUFFIXES if kinds.get(suffix) in Image.OPEN)
