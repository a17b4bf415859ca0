"""Images as a processor of transformers prepares them, and the tokens that stand for them in a text."""

from __future__ import annotations

import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor
from transformers import AutoImageProcessor, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.auto_mappings import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.processing_utils import ProcessorMixin

from softprompt.images import read_image
from softprompt.outputs import Picture

_OF_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels", "num_patches")
_LATEST = 8  # images whose inputs are kept between reading and the first pass


class PictureReader:
    """Turns images into the tokens that stand for them and the tensors that a vision tower reads.

    processor  of transformers, with its tokenizer
    image_id   id of the placeholders
    marker     what a chat puts in the place of an image, the processor's image token among it
    """

    def __init__(self, processor: ProcessorMixin, image_id: int) -> None:
        self.processor = processor
        self.image_id = image_id
        self.token = str(getattr(processor, "image_token", ""))
        self.marker = _marker(processor, self.token)
        self._known: WeakValueDictionary[bytes, Picture] = WeakValueDictionary()
        self._latest: OrderedDict[bytes, dict[str, Tensor]] = OrderedDict()

    def __call__(self, value: Any) -> Picture:
        """The image of a row; see `softprompt.images.read_image` for what `value` may be.

        Raises ValueError for what is no image, for a video, and for an image that the processor refuses.
        """
        _refuse_videos(value)
        image = read_image(value)
        digest = hashlib.blake2b(image.tobytes(), digest_size=16, key=str(image.size).encode()).digest()
        known = self._known.get(digest)
        if known is None:
            tokens, inputs = self._processed(image)
            self._latest[digest] = inputs
            while len(self._latest) > _LATEST:
                self._latest.popitem(last=False)
            known = self._known[digest] = Picture(tokens, digest, image)
        return known

    def inputs(self, picture: Picture) -> dict[str, Tensor]:
        """What the vision tower reads: pixels, and what the processor says about their layout."""
        found = self._latest.pop(picture.digest, None)
        return self._processed(picture.image)[1] if found is None else found

    def together(self, pictures: Sequence[Picture]) -> dict[str, Tensor]:
        """The same for several images, as the processor lays out a batch of rows with one image each."""
        found = self.processor(
            text=[self.token] * len(pictures),
            images=[[picture.image] for picture in pictures],
            padding=True,
            return_tensors="np",
        )
        return _of_images(found)

    def _processed(self, image: Any) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        token = self.token
        try:
            found = self.processor(
                text=[token], images=[image], return_tensors="np", return_text_replacement_offsets=True
            )
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise ValueError(
                f"the image has {image.width} x {image.height} pixels, and the model's {type(self.processor).__name__}"
                f" does not read it ({error}): make it smaller or crop it"
            ) from error
        replacement = found.pop("text_replacement_offsets")[0][0]["replacement"]
        written = self.marker.replace(token, replacement)
        ids = self.processor.tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(ids), _of_images(found)


def _of_images(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(value)
        for name, value in found.items()
        if name not in _OF_TEXT and isinstance(value, np.ndarray)
    }


def _refuse_videos(value: Any) -> None:
    name = value if isinstance(value, str) else value.get("path") if isinstance(value, Mapping) else None
    is_file = isinstance(name, str) and name.lower().endswith((".mp4", ".avi", ".mov", ".mkv", ".webm"))
    if is_file or getattr(value, "ndim", 0) == 4:
        raise ValueError(
            f"{name or 'an array with four axes'} is a video, and softprompt reads images only: the frames of a video are read"
            " by torchvision, which it does not need otherwise. Give single frames, each in a column of its own"
        )


def _marker(processor: Any, token: str) -> str:
    """What a chat puts in the place of an image; without a chat template, the processor's image token."""
    if not getattr(processor, "chat_template", None):
        return token
    parts: list[dict[str, str]] = [{"type": "image"}, {"type": "text", "text": "\0"}]
    try:
        with_image, without = (
            str(processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False))
            for content in (parts, parts[1:])
        )
    except Exception:  # templates are programs of their authors
        return token
    start = next(
        (i for i, (a, b) in enumerate(zip(with_image, without, strict=False)) if a != b), len(without)
    )
    added = with_image[start : start + len(with_image) - len(without)].strip()
    return added if added.count(token) == 1 else token


def processor_files(folder: str, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """The settings of the processor in a folder or on the hub, with its image processor, which works with Pillow."""
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    settings, _ = ProcessorMixin.get_processor_dict(folder, revision=revision)
    return {
        **settings,
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil", **options),
    }


def processor_for(
    given: Any, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str
) -> ProcessorMixin:
    """The processor of a model, without a part for videos.

    given      a processor of transformers, which is used as it is; its image processor, or the settings of a processor
               (processor_config.json) with the image processor's in "image_processor"
    tokenizer  of the model
    config     of the model
    name       of the model, for people

    Raises ValueError for anything else, and for a processor that needs a package that is missing.
    """
    if isinstance(given, ProcessorMixin):
        return given
    settings: dict[str, Any] = {}
    written = None
    if isinstance(given, Mapping):
        settings, written = dict(given), given.get("processor_class")
        given = settings.pop("image_processor", None)
    if not isinstance(given, ImageProcessingMixin):
        raise ValueError(
            f"processor is a {type(given).__name__}, expected the processor of {name} or its image processor"
        )
    known = written or PROCESSOR_MAPPING_NAMES.get(config.model_type)
    kind: Any = processor_class_from_name(known) if known else None
    if kind is None:
        raise ValueError(f"transformers has no processor for {name}, a model of type {config.model_type!r}")
    taken = inspect.signature(kind.__init__).parameters
    settings = {
        key: value for key, value in settings.items() if key in taken and not key.endswith("processor")
    }
    # Parts for videos and sound, which need more packages, are left out; the check of a processor's parts would miss them.
    bare = type(kind.__name__, (kind,), {"check_argument_for_proper_class": lambda self, part, value: None})
    others = {part: None for part in kind.get_attributes() if part not in ("image_processor", "tokenizer")}
    try:
        made: ProcessorMixin = bare(image_processor=given, tokenizer=tokenizer, **others, **settings)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the {kind.__name__} of {name} cannot be made: {error}") from error
    return made
