"""Classification of images by a trained head. B rows, K labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.data import Row
from softprompt.images import POOLINGS, ImagePooling, ImageRule, ImageSetting, to_pixels
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, Task, TaskEncoder
from softprompt.tasks.classes import ClassPrediction, class_losses, predict_classes
from softprompt.tasks.columns import check_columns, read_column
from softprompt.tasks.labels import Labelling, Names, Values, check_labels


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class ImageClassification(Task):
    """One of K labels for an image, by a head that is trained with the prompt.

    Raises ValueError (pydantic's) for fewer than two labels, a `columns` key that nothing reads, an image size that is
    not positive, and for an unknown setting.
    """

    name: ClassVar[str] = "image-classification"
    main_metric: ClassVar[str] = "accuracy"
    about_images: ClassVar[bool] = True

    labels: Names
    """The labels; their order is that of the head's outputs."""
    label_column: str = "label"
    """Column that holds the right label; its values are compared as text, so 1 is "1"."""
    label_values: Values = dataclasses.field(default_factory=dict)
    """What the data writes -> label, where the two differ, as in {"0": "cat", "1": "dog"}."""
    loss_labels: Names | None = None
    """Labels among which the loss is computed, as if there were no others; a prediction is any label. By default all."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{"image": the column that holds the image}, where it has another name."""
    image_size: int | tuple[int, int] | None = None
    """Side, or (height, width), that images are brought to, in pixels; the backbone's positions are interpolated where
    they were trained for another. By default what its image processor says."""
    pooling: ImagePooling | None = None
    """What the head reads: the class token, the mean of the patches behind the last norm, the last norm of the mean of
    prompts and patches together (as the released VPT does on MAE), the mean of the prompts alone (L2P), or the tower's own
    pooler. By default what the method says, else the pooler where there is one, else the class token."""

    @model_validator(mode="after")
    def _check(self) -> ImageClassification:
        check_columns(self.columns, ["image", self.label_column])
        check_labels(self.labels, loss_labels=self.loss_labels or (), label_values=self.label_values.values())
        sides = self.image_size if isinstance(self.image_size, tuple) else (self.image_size,)
        if any(side is not None and side < 1 for side in sides):
            raise ValueError(f"image_size is {self.image_size}: expected pixels, 1 or more")
        return self

    @property
    def labelling(self) -> Labelling:
        """`labels`, and how rows say which is right."""
        return Labelling(
            tuple(self.labels), self.label_column, self.columns, self.label_values, self.loss_labels
        )

    @property
    def fields(self) -> tuple[str, ...]:
        """The image alone."""
        return ("image",)

    @property
    def outputs(self) -> int:
        """K: one logit for each label."""
        return len(self.labels)

    def bind(self, setting: ImageSetting) -> ImageClassificationEncoder:
        """Raises ValueError for a pooling that the backbone does not have, a size that is no multiple of its patches, and
        one that the backbone's positions were not trained for, unless the task asks for it."""
        pooling = self.pooling or setting.pooling
        if pooling not in setting.poolings:
            raise ValueError(
                f"pooling is {pooling!r}, and this backbone can be read as {list(setting.poolings)}"
            )
        return ImageClassificationEncoder(self, sized_rule(setting, self.image_size), pooling)

    def evaluate(self, predictions: Sequence[ClassPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `classification_metrics`."""
        return self.labelling.metrics(predictions, rows)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Where the image comes from, then its label on a line of its own."""
        text = described(read_column(row, "image", self.columns))
        return f"{text}\n{self.read_label(row)}" if answer else text


@dataclasses.dataclass(frozen=True)
class ImageClassificationEncoder(TaskEncoder):
    """An `ImageClassification` bound to a backbone; see `TaskEncoder`."""

    task: ImageClassification
    rule: ImageRule
    pooling: ImagePooling

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Pixels of a row, (3, H, W) uint8; `answer` is the number of the right label.

        Raises ValueError for a missing column or value, an unknown label and what is no image.
        """
        right = (self.task.labels.index(self.task.read_label(row)),) if answer else ()
        pixels = to_pixels(read_column(row, "image", self.task.columns), self.rule)
        return EncodedRow((), read=(POOLINGS.index(self.pooling),), answer=right, media=pixels)

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Cross-entropy of each row, (B,), nats. answers: (B, K). See `class_losses`."""
        return class_losses(answers, rows, self.task.labels, self.task.loss_labels)

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[ClassPrediction]:
        """The likeliest label of each row, in order."""
        return predict_classes(model, rows, self.task.labels, batch_size, on_batch)


def sized_rule(setting: ImageSetting, size: int | tuple[int, int] | None) -> ImageRule:
    """How images are prepared for a size in pixels, None being the backbone's own.

    Raises ValueError for one that is no multiple of the backbone's patches, and where the backbone's own is not what its
    positions were trained for.
    """
    rule = setting.rule
    if size is not None:
        rule = rule.resized((size, size) if isinstance(size, int) else size)
    elif setting.positions is not None and rule.size != setting.positions:
        (height, width), trained = rule.size, setting.positions
        raise ValueError(
            f"images are prepared as {height} x {width} pixels, and the backbone's positions were trained for"
            f" {trained[0]} x {trained[1]}: set image_size=({height}, {width}) to have them interpolated, or"
            f" image_size=({trained[0]}, {trained[1]}) to use them as they are"
        )
    if any(side % part or not side for side, part in zip(rule.size, setting.patch, strict=True)):
        height, width = rule.size
        raise ValueError(
            f"images of {height} x {width} pixels do not fall into this backbone's patches of {setting.patch[0]} x"
            f" {setting.patch[1]}: set image_size to a multiple, such as"
            f" {max(1, round(height / setting.patch[0])) * setting.patch[0]}"
        )
    return rule


def described(image: Any) -> str:
    """Where an image comes from, in a word."""
    return str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
