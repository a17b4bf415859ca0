"""Inspection of a prompt for images: what it learned, and what it predicts for single images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.backbones.vision.class_attention import ClassAttention
from softprompt.data import Row
from softprompt.images import ImageRule
from softprompt.inspection.virtual_tokens import PromptReport, inspect_prompt
from softprompt.outputs import EncodedRow
from softprompt.tasks import ClassPrediction
from softprompt.tasks.inputs import as_row, as_rows

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt


@runtime_checkable
class ShowsAttention(Protocol):
    """A backbone that shows what the class token of an image attends to."""

    def class_attention(self, row: EncodedRow, run: Callable[[EncodedRow], object]) -> ClassAttention: ...


@dataclass(frozen=True)
class LearnedTensor:
    """A tensor of the prompt: its name, its shape, and the mean L2 norm of its rows."""

    name: str
    shape: tuple[int, ...]
    norm: float


@dataclass(frozen=True)
class ImageReport:
    """The report of one image.

    source      where the image comes from
    pixels      (3, H, W) uint8, as the backbone saw it
    prediction  label and probabilities
    attention   attention of the class token; None: the backbone has none to show, and `ImagePromptReport` says why
    right       the right label, if it is known
    """

    source: str
    pixels: Tensor
    prediction: ClassPrediction
    attention: ClassAttention | None
    right: str | None = None

    def best(self, count: int) -> list[tuple[str, float]]:
        """Return the most likely labels with their probabilities, the most likely first."""
        return sorted(self.prediction.probabilities.items(), key=lambda item: -item[1])[:count]


@dataclass(frozen=True)
class ImagePromptReport:
    """The report of a prompt for images.

    size          (H, W) to which images are resized, in pixels; None: the task does not say
    no_attention  why no attention is shown; empty if it is shown
    words         where images are compared with texts: the virtual tokens in these, and the words near to them
    metrics       metrics of the task over the images whose right label is known; empty if there are none
    """

    method: str
    backbone: str
    size: tuple[int, int] | None
    learned: tuple[LearnedTensor, ...]
    images: tuple[ImageReport, ...]
    no_attention: str = ""
    words: PromptReport | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def class_attention(tuned: TunedPrompt, image: Any) -> ClassAttention:
    """Return what the class token attends to in every layer: patches, prompts (keys and values included) and special rows.

    image: a path, the bytes of a file, a Pillow image or an array.
    Raises ValueError for a backbone that is not a plain vision transformer, has no class token, or does not expose its
    attention, and for a value that is not an image.
    """
    return _class_attention(tuned, tuned.encoder.encode(as_row(tuned.task, image), answer=False))


def inspect_images(tuned: TunedPrompt, images: Sequence[Any] = (), *, top: int = 5) -> ImagePromptReport:
    """Return what a prompt learned, and for each image its prediction and attention.

    Arguments:
        tuned: a prompt for images
        images: images as in `class_attention`, or rows. Rows that hold their right label count in `metrics`, and so do files
            in a folder whose name is a label
        top: the number of words for each virtual token

    Raises:
        ValueError: for a prompt that is not about images, a value that is not an image, and an unknown label
    """
    backbone, task = tuned.backbone, tuned.task
    if not task.about_images:
        raise ValueError(f"{task.name} on {backbone.name} asks about no images: inspect it without them")
    no_attention = "" if isinstance(backbone, ShowsAttention) else _no_attention(backbone)
    rows = [_labelled(tuned, row) for row in as_rows(task, images)]
    right = [_right(tuned, row) for row in rows]
    predictions = tuned.predict(rows) if rows else []
    reports = []
    for row, label, prediction in zip(rows, right, predictions, strict=True):
        encoded, attention = tuned.encoder.encode(row, answer=False), None
        assert encoded.media is not None
        try:
            attention = _class_attention(tuned, encoded)
        except ValueError as error:
            no_attention = str(error)
        reports.append(ImageReport(_source(tuned, row), encoded.media, prediction, attention, label))
    learned = tuple(
        LearnedTensor(name, tuple(tensor.shape), tensor.float().norm(dim=-1).mean().item())
        for name, tensor in tuned.module.bake().state_dict().items()
        if tensor.ndim and torch.is_floating_point(tensor) and tensor.numel()
    )
    rule: ImageRule | None = getattr(tuned.encoder, "rule", None)
    answered = [i for i, label in enumerate(right) if label is not None]
    return ImagePromptReport(
        tuned.method.name,
        backbone.name,
        None if rule is None else rule.size,
        learned,
        tuple(reports),
        no_attention,
        inspect_prompt(tuned, top, rows) if task.compares_texts else None,
        task.evaluate([predictions[i] for i in answered], [rows[i] for i in answered]) if answered else {},
    )


def _right(tuned: TunedPrompt, row: Row) -> str | None:
    labelling = tuned.task.labelling
    return labelling.read(row) if labelling is not None and labelling.is_in(row) else None


def _labelled(tuned: TunedPrompt, row: Row) -> Row:
    """The row of a file without a label, with the name of its folder as the label if it is one of the task's."""
    labelling, image = tuned.task.labelling, row[tuned.task.columns.get("image", "image")]
    if labelling is None or labelling.is_in(row) or not isinstance(image, str | Path):
        return row
    folder = Path(image).parent.name
    if folder not in {*labelling.labels, *labelling.values}:
        return row
    return {**row, labelling.columns.get(labelling.column, labelling.column): folder}


def _source(tuned: TunedPrompt, row: Row) -> str:
    image = row[tuned.task.columns.get("image", "image")]
    return str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"


def _no_attention(backbone: Backbone) -> str:
    return (
        f"attention is shown for plain vision transformers; {backbone.name} is of the family {backbone.spec.family}, or has a"
        " network at its side"
    )


def _class_attention(tuned: TunedPrompt, row: EncodedRow) -> ClassAttention:
    if not isinstance(tuned.backbone, ShowsAttention):
        raise ValueError(_no_attention(tuned.backbone))
    return tuned.backbone.class_attention(row, lambda watched: tuned.model.states([watched]))
