"""What transformers' image processors do to an image, as an ImageRule: the same pixels, or an error that names the setting.

A processor's class says what its file leaves out, so a file is read through its class, in the version for Pillow. The
rule is then tried on images of noise: what it does not reproduce is refused, whatever the class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.models.auto.image_processing_auto import (  # type: ignore[attr-defined]  # it completes the table
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)
from transformers.processing_utils import ImagesKwargs

from softprompt.images import ImageRule, normalized, to_pixels

_TRIED = ((96, 61), (53, 119), (9, 7))  # width and height: wide, tall, and smaller than any model's images


def rules_of(
    processor: Mapping[str, Any] | Any, default_size: tuple[int, int], model_type: str
) -> tuple[ImageRule, ImageRule | None]:
    """The rule of one of transformers' image processors, and the rule that earlier versions read, if it differs.

    processor     one of them, or its configuration (preprocessor_config.json)
    default_size  (H, W) that was taken, before, for processors that do not resize
    model_type    of the model; says the class where a configuration does not

    Raises ValueError for a processor that no rule reproduces, naming the setting.
    """
    config = processor if isinstance(processor, Mapping) else processor.to_dict()
    try:
        former = former_rule_of(config, default_size)
    except (TypeError, ValueError, KeyError):
        former = None
    try:
        rule = rule_of(processor, model_type)
    except ValueError as error:
        advice = "pass processor=ImageRule(...)"
        if former is not None:
            advice += (
                f"; what softprompt made of this one before, other pixels than transformers', is {former}"
            )
        raise ValueError(f"{error}: {advice}") from error
    return rule, None if former == rule else former


def rule_of(processor: Mapping[str, Any] | Any, model_type: str) -> ImageRule:
    """The rule whose pixels are those of an image processor. Raises ValueError if there is none; see `rules_of`."""
    if isinstance(processor, Mapping) or getattr(processor, "backend", "pil") != "pil":
        processor = _with_pillow(processor, model_type)
    try:
        rule = _as_it_says(processor)
    except ValueError as error:
        settings = _unusual(processor)
        raise ValueError(
            f"{error}, in a {type(processor).__name__}" + (f" with {settings}" if settings else "")
        ) from error
    if (reason := _difference(processor, rule)) is not None:
        settings = _unusual(processor) or "steps of its own"
        raise ValueError(f"the image processor is a {type(processor).__name__} with {settings}, and {reason}")
    return rule


def _with_pillow(processor: Mapping[str, Any] | Any, model_type: str) -> Any:
    """The processor in its version for Pillow."""
    config = dict(processor if isinstance(processor, Mapping) else processor.to_dict())
    kind = _class_of(config, model_type)
    try:
        return kind.from_dict(config)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"the image processor's configuration is none that {kind.__name__} takes ({error})"
        ) from error


def _class_of(config: Mapping[str, Any], model_type: str) -> Any:
    written = config.get("image_processor_type")
    if written is None and config.get("feature_extractor_type") is not None:  # older files
        written = str(config["feature_extractor_type"]).replace("FeatureExtractor", "ImageProcessor")
    if written is None:
        # clip_vision_model is a part of clip, dinov2_with_registers a kind of dinov2.
        known = [
            name
            for name in IMAGE_PROCESSOR_MAPPING_NAMES
            if model_type == name or model_type.startswith(f"{name}_")
        ]
        if not known:
            raise ValueError(
                f"the image processor's configuration has no image_processor_type, and there is none for {model_type!r}"
            )
        kinds = IMAGE_PROCESSOR_MAPPING_NAMES[max(known, key=len)]
    else:
        name = str(written).removesuffix("Fast").removesuffix("Pil")
        mappings: Any = IMAGE_PROCESSOR_MAPPING_NAMES.values()
        kinds = next((kinds for kinds in mappings if name in map(_base, kinds.values())), {})
    kind = get_image_processor_class_from_name(kinds["pil"]) if kinds.get("pil") else None
    if kind is None or getattr(kind, "is_dummy", False):
        raise ValueError(
            f"image_processor_type is {written or next(iter(kinds.values()))!r}, which transformers does not have for"
            " Pillow"
        )
    return kind


def _base(name: str | None) -> str:
    return (name or "").removesuffix("Pil")


def _as_it_says(processor: Any) -> ImageRule:
    """The rule in the settings that all of transformers' image processors share."""
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    edge = longest = stretch = None
    if processor.do_resize:
        edge, longest = getattr(size, "shortest_edge", None), getattr(size, "longest_edge", None)
        if edge is None:
            height, width = getattr(size, "height", None), getattr(size, "width", None)
            if not height or not width:
                raise ValueError(
                    f"the image processor's size is {_plain(size)}, expected height and width, or shortest_edge"
                )
            stretch = (int(height), int(width))
    final = stretch
    if crop is not None:
        if not getattr(crop, "height", None) or not getattr(crop, "width", None):
            raise ValueError(f"the image processor's crop_size is {_plain(crop)}, expected height and width")
        final = (int(crop.height), int(crop.width))
    if final is None:
        setting = "do_resize" if not processor.do_resize else f"size {_plain(size)} with do_center_crop"
        raise ValueError(
            f"the image processor has {setting} false, so that images keep sizes or proportions of their own"
        )
    mean, std = _normalization(processor)
    resample = 2 if processor.resample is None else int(processor.resample)
    plain = ImageRule(size=final, mean=mean, std=std, resample=resample)
    if stretch == final:
        return plain
    return replace(
        plain,
        edge=None if edge is None else int(edge),
        longest=None if edge is None or longest is None else int(longest),
        stretch=stretch,
        as_transformers=True,
    )


def _normalization(processor: Any) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation in units of the full range, whatever factor pixels are multiplied by."""
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if processor.do_normalize:
        mean, std = _three(processor, "image_mean"), _three(processor, "image_std")
    factor = float(processor.rescale_factor) if processor.do_rescale else 1.0
    if math.isclose(factor, 1 / 255, rel_tol=1e-7):
        return mean, std
    if not factor > 0:
        raise ValueError(f"the image processor's rescale_factor is {factor}, expected one above 0")
    # (x f - mean) / std = (x / 255 - mean / 255 f) / (std / 255 f)
    return _divided(mean, 255 * factor), _divided(std, 255 * factor)


def _divided(values: tuple[float, float, float], by: float) -> tuple[float, float, float]:
    red, green, blue = values
    return red / by, green / by, blue / by


def _three(processor: Any, name: str) -> tuple[float, float, float]:
    values = getattr(processor, name)
    if isinstance(values, int | float):
        values = (values,) * 3
    if not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(f"the image processor's {name} is {values}, expected three numbers")
    red, green, blue = map(float, values)
    return red, green, blue


def _difference(processor: Any, rule: ImageRule) -> str | None:
    """How the rule's pixels differ from the processor's on images of noise; None: they do not."""
    drawn = np.random.default_rng(0)
    for width, height in _TRIED:
        image = Image.fromarray(drawn.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            values = processor(images=image, return_tensors="pt")["pixel_values"]
            expected = torch.as_tensor(values)[0]
        except (ValueError, TypeError, RuntimeError, KeyError, AttributeError, ImportError) as error:
            return f"it fails on an image of {width} x {height} pixels ({error})"
        found = normalized(to_pixels(image, rule)[None], rule, torch.float32)[0]
        if found.shape != expected.shape:
            return f"it makes {tuple(expected.shape)} of an image where a rule makes {tuple(found.shape)}"
        if not torch.allclose(found, expected.float(), rtol=1e-6, atol=2e-6):
            largest = (found - expected).abs().max().item()
            return f"its pixels differ from those of any rule by up to {largest:.2g}"
    return None


def _unusual(processor: Any) -> str:
    """The settings of a processor that not all of them have, and those that change what becomes of an image."""
    shared = {"do_pad", "pad_size", *ImagesKwargs.__annotations__}
    names = [name for name in type(processor).valid_kwargs.__annotations__ if name not in shared]
    names += ["do_pad", "pad_size"] if getattr(processor, "do_pad", None) else []
    said = [f"{name}={_plain(getattr(processor, name, None))}" for name in names]
    return ", ".join(said)


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__ if getattr(value, name)}
    return value


def former_rule_of(config: Mapping[str, Any], default_size: tuple[int, int]) -> ImageRule | None:
    """The rule that earlier versions read from a configuration; None if they refused it.

    Prompts that were trained on such pixels are recognised by this rule. It never changes.
    """
    scaled = config.get("do_rescale", True)
    if scaled and not math.isclose(config.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        return None
    edge, size = None, default_size
    if config.get("do_resize", True) and config.get("size") is not None:
        wanted = config["size"]
        if isinstance(wanted, int):
            cuts = config.get("do_center_crop", False)
            wanted = {"shortest_edge": wanted} if cuts else {"height": wanted, "width": wanted}
        if "shortest_edge" in wanted:
            edge = int(wanted["shortest_edge"])
            size = (edge, edge)
        elif {"height", "width"} <= set(wanted):
            size = (int(wanted["height"]), int(wanted["width"]))
        else:
            return None
    if config.get("do_center_crop", False) and config.get("crop_size") is not None:
        crop = config["crop_size"]
        before = size
        size = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
        edge = edge or max(*before, *size)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        values = [config.get(name) for name in ("image_mean", "image_std")]
        if not all(isinstance(value, Sequence) and len(value) == 3 for value in values):
            return None
        mean, std = (tuple(map(float, value)) for value in values)  # type: ignore[arg-type, assignment]
    return ImageRule(size=size, mean=mean, std=std, edge=edge, resample=int(config.get("resample", 2)))
