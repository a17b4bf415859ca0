"""Images of requests. They come as data URLs: a string is a path to the library, and no client may name one."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Sequence
from typing import Any

from PIL import Image, UnidentifiedImageError

from softprompt.serving.errors import BadRequestError
from softprompt.serving.registry import Entry
from softprompt.serving.settings import Settings
from softprompt.tasks.inputs import as_row

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
"""What is opened; Pillow's other readers are never tried."""


def with_images(entry: Entry, inputs: Sequence[Any], settings: Settings) -> list[Any]:
    """The inputs with the bytes of their images in the place of data URLs; texts stay as they are.

    Raises BadRequestError for an image column that holds anything else, and for a prompt that reads sound.
    """
    task: Any = entry.tuned.task
    if getattr(task, "media", None) is not None:
        raise BadRequestError(f"{entry.name} reads sound, which is not taken over HTTP", param="model")
    if not (task.about_images or task.compares_texts):
        return list(inputs)
    columns = [task.columns.get(name, name) for name in task.fields]
    rows = []
    for number, value in enumerate(inputs):
        try:
            row = dict(as_row(task, value))
        except ValueError as error:
            raise BadRequestError(f"input {number}: {error}", param="input") from error
        # Only what the task reads goes on: no other column of the client reaches it.
        rows.append({column: image_bytes(row.get(column), number, settings) for column in columns})
    return rows


def image_bytes(url: Any, number: int, settings: Settings) -> bytes:
    """The bytes of an image in a data URL. Raises BadRequestError for anything that is none, and for too many pixels."""
    if not isinstance(url, str) or not url.startswith("data:"):
        raise BadRequestError(
            f"input {number}: expected an image as a data URL (data:image/png;base64,...); paths and other URLs are not read",
            param="input",
        )
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise BadRequestError(f"input {number}: the data URL is not base64", param="input")
    try:
        content = base64.b64decode(body, validate=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have a limit of our own
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                width, height = image.size
    except (
        binascii.Error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
    ) as error:
        raise BadRequestError(
            f"input {number}: no image of the kinds {', '.join(FORMATS)} in base64", param="input"
        ) from error
    if width * height > settings.max_pixels:
        raise BadRequestError(
            f"input {number}: {width} x {height} pixels, and {settings.max_pixels:,} are allowed: make it smaller",
            param="input",
        )
    return content
