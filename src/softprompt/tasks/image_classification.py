"""Image classification: a trained head gives a label for an image. B rows, K labels."""

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
    """A head, trained with the prompt, gives one of K labels for an image.

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
    """The side, or (height, width), to which images are resized, in pixels. The backbone's positions are interpolated if they
    were trained for another size. The default is the size of its image processor."""
    pooling: ImagePooling | None = None
    """What the head reads: the class token, the mean of the patches after the last norm, the last norm of the mean of
    prompts and patches together (as the released VPT does on MAE), the mean of the prompts alone (L2P), or the tower's own
    pooler. The method may choose the default; otherwise it is the pooler, or the class token of a tower without one."""

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
            labels=tuple(self.labels),
            column=self.label_column,
            columns=self.columns,
            values=self.label_values,
            competing=self.loss_labels,
            fields=self.fields,
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
        """Return where the image comes from, then its label on a line of its own."""
        text = described(read_column(row, "image", self.columns, [self.label_column]))
        return f"{text}\n{self.read_label(row)}" if answer else text


@dataclasses.dataclass(frozen=True)
class ImageClassificationEncoder(TaskEncoder):
    """An `ImageClassification` bound to a backbone; see `TaskEncoder`."""

    task: ImageClassification
    rule: ImageRule
    pooling: ImagePooling

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the pixels of a row, (3, H, W) uint8; `answer` is the number of the right label.

        Raises ValueError for a missing column or value, an unknown label, and a value that is not an image.
        """
        right = (self.task.labels.index(self.task.read_label(row)),) if answer else ()
        pixels = to_pixels(read_column(row, "image", self.task.columns, [self.task.label_column]), self.rule)
        return EncodedRow((), read=(POOLINGS.index(self.pooling),), answer=right, media=pixels)

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the cross-entropy of each row, (B,), in nats. answers: (B, K). See `class_losses`."""
        return class_losses(answers, rows, self.task.labels, self.task.loss_labels)

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[ClassPrediction]:
        """Return the most likely label of each row, in order."""
        return predict_classes(model, rows, self.task.labels, batch_size, on_batch)


def sized_rule(setting: ImageSetting, size: int | tuple[int, int] | None) -> ImageRule:
    """Return how images are prepared for a size in pixels; None stands for the backbone's own size.

    Raises ValueError for a size that is not a multiple of the backbone's patches, and if the backbone's own size is not the
    one that its positions were trained for.
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
    """Return where an image comes from: its path, or its type."""
    return str(image) if isinstance(image, str | Path) else f"<{type(image).__name__}>"
