"""Folders of images as rows: each class has a folder, whose name is the label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPLITS = ("train", "validation", "val", "test")
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def has_splits(folder: Path) -> bool:
    """Whether a folder holds a folder for each split, which in turn hold the classes."""
    return any((folder / split).is_dir() for split in SPLITS)


def read_image_folder(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """Rows {"image": path, "label": class} of FOLDER/CLASS/**/FILE or FOLDER/SPLIT/CLASS/**/FILE, in order of name.

    Files without the suffix of an image, and names that begin with a dot, are skipped.
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
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
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
                f"the class folder {kind} holds no image ({', '.join(sorted(SUFFIXES))}): fill or remove it"
            )
        rows += [{"image": str(path), "label": kind.name} for path in files]
    if not rows:
        raise ValueError(f"{folder} has no class folders: expected FOLDER/CLASS/IMAGE")
    return rows


def image_files(place: Path) -> list[Path]:
    """All images under a folder, sorted by name; a file gives itself.

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
        raise ValueError(f"the folder {place} holds no image ({', '.join(sorted(SUFFIXES))})")
    return files


def image_paths(places: Sequence[str]) -> list[str]:
    """The `image_files` of several files and folders, as strings."""
    return [str(path) for place in places for path in image_files(Path(place))]


def _images_under(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_image(path) and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()
