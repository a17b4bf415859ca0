"""What a prompt for images learned, and what it makes of single images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softprompt.backbones._class_attention import ClassAttention
from softprompt.backbones.base import Backbone
from softprompt.backbones.vision import VisionBackbone
from softprompt.outputs import EncodedRow
from softprompt.tasks import ClassPrediction
from softprompt.tasks.image_classification import ImageClassificationEncoder
from softprompt.tasks.image_text_classification import ImageTextClassificationEncoder

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt


@dataclass(frozen=True)
class LearnedTensor:
    """A tensor that belongs to the prompt: its name, its shape, and the mean L2 norm of its rows."""

    name: str
    shape: tuple[int, ...]
    norm: float


@dataclass(frozen=True)
class ImageReport:
    """One image.

    source      where it came from
    pixels      (3, H, W) uint8, as the backbone saw it
    prediction  label and probabilities
    attention   of the class token; None: the backbone has none that could be shown, and `ImagePromptReport` says why
    """

    source: str
    pixels: Tensor
    prediction: ClassPrediction
    attention: ClassAttention | None

    def best(self, count: int) -> list[tuple[str, float]]:
        """The likeliest labels with their probabilities, the likeliest first."""
        return sorted(self.prediction.probabilities.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True)
class ImagePromptReport:
    """A prompt for images.

    size          (H, W) that images are brought to, pixels; None: the task does not say
    no_attention  why no attention is shown; empty: it is
    """

    method: str
    backbone: str
    size: tuple[int, int] | None
    learned: tuple[LearnedTensor, ...]
    images: tuple[ImageReport, ...]
    no_attention: str = ""


def class_attention(tuned: TunedPrompt, image: Any) -> ClassAttention:
    """What the class token attends to in every layer: patches, prompts (keys and values among them) and special rows.

    image: a path, the bytes of a file, a Pillow image or an array.
    Raises ValueError for what is no plain vision transformer, has no class token, or whose attention cannot be reached; and
    for what is no image.
    """
    if not isinstance(tuned.backbone, VisionBackbone):
        raise ValueError(_no_attention(tuned.backbone))
    return _class_attention(tuned, tuned.backbone, _encoded(tuned, image))


def inspect_images(tuned: TunedPrompt, images: Sequence[Any] = ()) -> ImagePromptReport:
    """What was learned, and for each image prediction and attention; images as in `class_attention`.

    Raises ValueError for a prompt that is not about images, and for what is no image.
    """
    backbone = tuned.backbone
    if not tuned.task.about_images:
        raise ValueError(
            f"{tuned.task.name} on {backbone.name} asks about no images: inspect it without them"
        )
    no_attention = ""
    if not isinstance(backbone, VisionBackbone):
        no_attention = _no_attention(backbone)
    reports = []
    for image, prediction in zip(images, tuned.predict(images) if images else [], strict=True):
        row, attention = _encoded(tuned, image), None
        assert row.media is not None
        try:
            if isinstance(backbone, VisionBackbone):
                attention = _class_attention(tuned, backbone, row)
        except ValueError as error:
            no_attention = str(error)
        source = str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
        reports.append(ImageReport(source, row.media, prediction, attention))
    learned = tuple(
        LearnedTensor(name, tuple(tensor.shape), tensor.float().norm(dim=-1).mean().item())
        for name, tensor in tuned.module.bake().state_dict().items()
        if tensor.ndim and torch.is_floating_point(tensor) and tensor.numel()
    )
    size = None
    if isinstance(tuned.encoder, ImageClassificationEncoder | ImageTextClassificationEncoder):
        size = tuned.encoder.rule.size
    return ImagePromptReport(tuned.method.name, backbone.name, size, learned, tuple(reports), no_attention)


def _no_attention(backbone: Backbone) -> str:
    return (
        f"attention is shown of plain vision transformers; {backbone.name} is of the family {backbone.spec.family} here, or has"
        " a network at its side"
    )


def _encoded(tuned: TunedPrompt, image: Any) -> EncodedRow:
    return tuned.encoder.encode({tuned.task.columns.get("image", "image"): image}, answer=False)


def _class_attention(tuned: TunedPrompt, backbone: VisionBackbone, row: EncodedRow) -> ClassAttention:
    return backbone.class_attention(row, lambda watched: tuned.model.states([watched]))
