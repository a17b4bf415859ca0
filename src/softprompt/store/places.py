"""Paths of backbones, written so that a saved prompt does not reveal whose machine it came from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_hub_id(name: str) -> bool:
    """Whether a name could be that of a model on the hub, or of a built-in one."""
    return _HUB_ID.fullmatch(name) is not None


def shown_name(name: str) -> str:
    """A backbone's name without the folders of a local path."""
    return name if is_hub_id(name) else re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def portable(name: str, folder: Path) -> str:
    """A backbone's name as it is written into a folder: the path of a local one begins at the user's home, "~", or at the
    folder itself, ".". Other names stay as they are."""
    if not os.path.isabs(name) or not os.path.isdir(name):  # noqa: PTH112, PTH117 - a name is no Path
        return name
    home = os.path.expanduser("~")  # noqa: PTH111
    try:
        if home != os.sep and os.path.commonpath([home, name]) == os.path.normpath(home):
            return PurePosixPath("~", *Path(os.path.relpath(name, home)).parts).as_posix()
        relative = PurePosixPath(*Path(os.path.relpath(name, os.path.realpath(folder))).parts).as_posix()
    except ValueError:  # another drive of Windows
        return shown_name(name)
    return relative if relative.startswith(".") else f"./{relative}"


def resolved(name: str, folder: Path) -> str:
    """The name that `portable` wrote into a folder, as this machine finds it. Names of older files stay as they are."""
    if name.startswith("~/"):
        return os.path.expanduser(name)  # noqa: PTH111
    if name.split("/")[0] not in (".", ".."):
        return name
    place = os.path.normpath(os.path.join(os.path.realpath(folder), name))  # noqa: PTH118
    return place if os.path.isdir(place) else name  # noqa: PTH112


def from_home(values: Any) -> Any:
    """Plain values as YAML has them, in which paths that are there begin with "~" if they lie in the user's home.

    Everything else is unchanged, and `to_home` reads them back.
    """
    home = os.path.expanduser("~").rstrip("\\/")  # noqa: PTH111

    def shortened(text: str) -> str:
        inside = len(home) > 2 and text.startswith(home + os.sep) and _is_there(text)
        return PurePosixPath("~", *Path(text[len(home) + 1 :]).parts).as_posix() if inside else text

    return _texts_as(shortened, values)


def to_home(values: Any) -> Any:
    """Plain values in which "~/..." is a path on this machine, wherever there is such a file or folder."""

    def full(text: str) -> str:
        place = os.path.expanduser(text) if text.startswith("~/") else text  # noqa: PTH111
        return place if place != text and _is_there(place) else text

    return _texts_as(full, values)


def _texts_as(change: Callable[[str], str], values: Any) -> Any:
    if isinstance(values, str):
        return change(values)
    if isinstance(values, Mapping):
        return {key: _texts_as(change, value) for key, value in values.items()}
    return [_texts_as(change, value) for value in values] if isinstance(values, list | tuple) else values


def _is_there(place: str) -> bool:
    try:
        return os.path.lexists(place)
    except ValueError:  # a text with a null character
        return False


def without_folders(traceback: str) -> str:
    """A traceback that names files of libraries from the library on, others alone, and the user's home as "~"."""
    shortened = re.sub(r'(?<=File ")[^"\n]+(?=", line)', lambda found: _own_part(found[0]), traceback)
    home = os.path.expanduser("~")  # noqa: PTH111
    return shortened if len(home) < 3 else shortened.replace(home, "~")


def _own_part(file: str) -> str:
    parts = re.split(r"[\\/]", file)
    for root in ("site-packages", "softprompt"):
        if root in parts[:-1]:
            at = len(parts) - 1 - parts[::-1].index(root)
            return "/".join(parts[at + (root == "site-packages") :])
    return parts[-1]
