"""Images: from whatever a row holds to pixels of one size, with Pillow and torch alone.

H, W height and width.
"""

from __future__ import annotations

import io
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from softprompt.later import LATER, without_later

ImagePooling = Literal["class", "mean", "mean-with-prompts", "pooler", "prompts", "embedding"]
POOLINGS: tuple[ImagePooling, ...] = ("class", "mean", "mean-with-prompts", "pooler", "prompts", "embedding")
"""The ways in which a head can read an image. `EncodedRow.read` holds indices into this."""

_WHITE = (255, 255, 255, 255)  # the background of transparent images
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")


@dataclass(frozen=True)
class ImageRule:
    """How the images of a model are prepared, as its image processor is configured.

    size      (H, W) in pixels
    mean      mean of red, green and blue that is subtracted, as a share of the full range
    std       standard deviations that the result is divided by, as a share of the full range
    edge      length in pixels that the shorter side is scaled to before the centre of `size` is cut out; None: the image
              is stretched to `size`
    resample  Pillow's number of the filter: 2 bilinear, 3 bicubic
    stretch   (H, W) in pixels that both sides are stretched to before the centre of `size` is cut out, in the place of `edge`
    longest   with `edge`: the longer side is brought to no more pixels than this, the shorter one to fewer if need be
    as_transformers  True: the longer side is rounded down, and the cut is black where the image is smaller, as
              transformers' image processors do. False: it is rounded to the nearest, and the image enlarged to fill it
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    edge: int | None = None
    resample: int = 3
    stretch: Annotated[tuple[int, int] | None, LATER] = None
    longest: Annotated[int | None, LATER] = None
    as_transformers: Annotated[bool, LATER] = False

    def resized(self, size: tuple[int, int]) -> ImageRule:
        """The rule for another size. The same share of the image is cut off."""
        edge = None if self.edge is None else max(*size, round(self.edge * min(size) / min(self.size)))
        stretch, longest = self.stretch, self.longest
        if stretch is not None:
            stretch = (round(stretch[0] * size[0] / self.size[0]), round(stretch[1] * size[1] / self.size[1]))
        if longest is not None:
            longest = round(longest * max(size) / max(self.size))
        return replace(self, size=size, edge=edge, stretch=stretch, longest=longest)

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for fingerprints."""
        return without_later(self, asdict(self))


@dataclass(frozen=True)
class ImageSetting:
    """The facts that a task's encoder needs to prepare images for a backbone.

    rule      how the images are prepared
    patch     (H, W) of a patch in pixels; an image's sides must be multiples of it
    poolings  the poolings that a head can read
    pooling   the pooling that it reads unless the task chooses one
    positions (H, W) in pixels that the positions were trained for; None: the model always interpolates them
    former    the rule by which earlier versions prepared the images, where that was another one
    """

    rule: ImageRule
    patch: tuple[int, int]
    poolings: tuple[ImagePooling, ...]
    pooling: ImagePooling
    positions: tuple[int, int] | None = None
    former: ImageRule | None = None


def to_pixels(value: Any, rule: ImageRule) -> Tensor:
    """An image prepared by the rule but not yet normalised, (3, H, W) uint8. See `read_image` for what `value` may be."""
    image = read_image(value)
    height, width = rule.size
    filter_ = Image.Resampling(rule.resample)
    if rule.as_transformers or rule.stretch is not None or rule.longest is not None:
        image = _as_transformers(image, rule, filter_)
    elif rule.edge is None:
        image = image.resize((width, height), filter_)
    else:
        scale = max(rule.edge / min(image.size), height / image.height, width / image.width)
        _check_strip(image, rule, scale * max(image.size))
        image = image.resize(
            (max(width, round(image.width * scale)), max(height, round(image.height * scale))), filter_
        )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def _as_transformers(image: Image.Image, rule: ImageRule, filter_: Image.Resampling) -> Image.Image:
    """Resized and cut as transformers' image processors do."""
    height, width = rule.size
    if rule.stretch is not None:
        image = image.resize((rule.stretch[1], rule.stretch[0]), filter_)
    elif rule.edge is not None:
        short, long = min(image.size), max(image.size)
        if rule.longest is not None and long / short * rule.edge > rule.longest:
            exact = rule.longest * short / long
            # As there: an image whose shorter side is right is left as it is.
            sides = (short, long) if round(exact) == short else (round(exact), int(exact * long / short))
        else:
            sides = (rule.edge, int(rule.edge * long / short))
        _check_strip(image, rule, max(sides) if min(sides) else math.inf)
        image = image.resize(sides if image.width <= image.height else sides[::-1], filter_)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))  # black beyond the image's edges


def _check_strip(image: Image.Image, rule: ImageRule, longer: float) -> None:
    if longer > 32 * max(rule.size, default=1):
        raise ValueError(
            f"the image has {image.width} x {image.height} pixels: so long a strip has no centre of"
            f" {rule.size[1]} x {rule.size[0]} that shows much of it; crop it, or stretch it with an ImageRule without"
            " edge"
        )


def normalized(pixels: Tensor, rule: ImageRule, dtype: torch.dtype) -> Tensor:
    """Pixels (B, 3, H, W) as the model reads them. uint8 is scaled and normalised; floating-point numbers already are."""
    if pixels.dtype != torch.uint8:
        return pixels.to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    mean = torch.tensor(rule.mean, dtype=wide, device=pixels.device)[:, None, None]
    std = torch.tensor(rule.std, dtype=wide, device=pixels.device)[:, None, None]
    return ((pixels.to(wide) / 255 - mean) / std).to(dtype)


def read_image(value: Any) -> Image.Image:
    """An RGB image, rotated as its EXIF data say, with transparent parts on white.

    value: a path; the bytes of a file; a Pillow image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8,
    uint16, bool, or floating-point numbers from 0 to 1; or {"bytes", "path"}, as `datasets` gives an image column that
    it does not decode.
    Raises ValueError, naming the file, for anything that is no image, and FileNotFoundError for a missing file.
    """
    match value:
        case Image.Image():
            return _to_rgb(value)
        case {"bytes": bytes(content)}:
            name = value.get("path") or "the bytes of the image column"
            return _from_file(io.BytesIO(content), str(name), len(content))
        case {"path": str(name)}:
            return read_image(name)
        case bytes():
            return _from_file(io.BytesIO(value), "the bytes that were given", len(value))
        case str() | Path():
            path = Path(value)
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no image file {path}; relative paths begin at the working folder, {Path.cwd()}"
                )
            return _from_file(path, str(path), path.stat().st_size)
        case Tensor() | np.ndarray():
            return _from_array(np.asarray(value))
        case _:
            raise ValueError(
                f"an image is a path, the bytes of a file, a Pillow image or an array; found a {type(value).__name__}"
            )


class _OtherKindError(ValueError):
    """An intact image of a kind that has no RGB pixels."""


def _from_file(source: Path | io.BytesIO, name: str, size: int) -> Image.Image:
    if not size:
        raise ValueError(f"{name}: the image is empty (0 bytes): replace it, or leave its row out")
    try:
        with Image.open(source) as image:
            image.load()
            return _to_rgb(image)
    except _OtherKindError as error:  # whole, but of a kind that is not read
        raise ValueError(f"{name}: {error}") from error
    except (
        UnidentifiedImageError
    ) as error:  # its message names the file again, or an object that nobody knows
        raise ValueError(
            f"{name}: no image that Pillow can read ({size} bytes): expected PNG, JPEG or the like; convert it, or leave its"
            " row out"
        ) from error
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read it") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name}: the image is larger than Pillow opens ({error}): make it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{name}: the image cannot be read ({error}); it is damaged or cut off: replace it, or leave its row out"
        ) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or 0 in array.shape:
        raise ValueError(
            f"an image array has shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4); colours come last"
        )
    if array.dtype == np.bool_:
        array = array * np.uint8(255)
    elif array.dtype == np.uint16:
        array = (array / 257).round().astype(np.uint8)
    elif np.issubdtype(array.dtype, np.floating):
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ValueError(
                f"an image array of {array.dtype} has values from {array.min():.3g} to {array.max():.3g}, expected"
                " finite ones from 0 to 1"
            )
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ValueError(
            f"an image array is of {array.dtype}, expected uint8, uint16, bool or floating-point numbers"
        )
    return _to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise _OtherKindError(f"the image has {image.width} x {image.height} pixels, which show nothing")
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        wide = np.asarray(image).astype(np.int64)
        # Pillow opens 16-bit files in 32-bit mode too; its own conversion to 8 bits would cut at 255.
        image = Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise _OtherKindError(
            "the image holds floating-point numbers, and nothing says which of them is white: pass it as an array with"
            " values from 0 to 1"
        )
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
    return image.convert("RGB")
