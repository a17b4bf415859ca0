"""Classification of whole texts by a trained head. B rows, K labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, Task, TextSetting
from softprompt.tasks.classes import ClassPrediction, class_losses, predict_classes
from softprompt.tasks.columns import check_columns, read_fields, read_media
from softprompt.tasks.labels import label_concerns, label_names, read_label
from softprompt.tasks.metrics import classification_metrics
from softprompt.tasks.reading import (
    Pooling,
    check_pooling,
    default_pooling,
    pooled_positions,
)
from softprompt.tasks.template import BoundTemplate, Template


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SequenceClassification(Task):
    """One of K labels for a text, by a head that is trained with the prompt.

    Raises ValueError (pydantic's) for a template that does not parse, fewer than two labels, a `columns` key that
    nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "sequence-classification"
    main_metric: ClassVar[str] = "accuracy"

    template: str
    """The row as text, as in "{text}" or "{premise} {hypothesis:cut}"; see `softprompt.tasks.template`."""
    labels: Sequence[str]
    """The labels; their order is that of the head's outputs."""
    label_column: str = "label"
    """Column that holds the right label; its values are compared as text, so 1 is "1" and True is "True"."""
    label_values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What the data writes -> label, where the two differ, as in {"0": "negative", "1": "positive"}."""
    loss_labels: Sequence[str] | None = None
    """Labels among which the loss is computed, as if there were no others; a prediction is any label. By default all."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the only field."""
    media: str | None = None
    """Column with what the backbone reads beside text, a sound or a spectrogram, where it does."""
    pooling: Pooling | None = None
    """Which last hidden states the head reads: that of the first or the last token, or the mean of all; virtual tokens
    never count. By default the first in an encoder, the last in a decoder, the mean in an encoder with a decoder."""

    @field_validator("labels", "loss_labels", mode="before")
    @classmethod
    def _labels_to_text(cls, labels: Any) -> Any:
        return label_names(labels)

    @field_validator("label_values", mode="before")
    @classmethod
    def _label_values_to_text(cls, values: Any) -> Any:
        return {str(k): str(v) for k, v in values.items()} if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check(self) -> SequenceClassification:
        template = Template.parse(self.template, self.cut)
        check_columns(self.columns, [*template.fields, self.label_column, *filter(None, [self.media])])
        if len(self.labels) < 2:
            raise ValueError(f"labels are {list(self.labels)}: two or more are needed")
        if unknown := [label for label in self.loss_labels or () if label not in self.labels]:
            raise ValueError(f"loss_labels has {unknown}, which are not among the labels {list(self.labels)}")
        if unknown := [value for value in self.label_values.values() if value not in self.labels]:
            raise ValueError(
                f"label_values lead to {unknown}, which are not among the labels {list(self.labels)}"
            )
        return self

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """Each label stands for itself: a prompt may start from the labels' names."""
        return {label: (label,) for label in self.labels}

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template, self.cut).fields

    @property
    def outputs(self) -> int:
        """K: one logit for each label."""
        return len(self.labels)

    def bind(self, setting: TextSetting) -> SequenceClassificationEncoder:
        """Raises ValueError where the template does not suit the tokenizer or P, or `pooling` the family."""
        pooling = self.pooling or default_pooling(setting)
        check_pooling(pooling, setting)
        template = Template.parse(self.template, self.cut).bind(setting)
        return SequenceClassificationEncoder(self, setting, template, pooling)

    def read_label(self, row: Row) -> str:
        """The right label of a row. Raises ValueError if its column is missing or its value is no label."""
        return read_label(row, self.label_column, self.columns, self.label_values, self.labels)

    def evaluate(self, predictions: Sequence[ClassPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `classification_metrics`."""
        gold = [self.read_label(row) for row in rows]
        return classification_metrics(gold, [p.label for p in predictions], list(self.labels))

    def concerns(self, train: Sequence[Row], metrics: Mapping[str, Any]) -> list[str]:
        """Labels of the loss without a training row; a model that gives all rows the same label."""
        seen = {self.read_label(row) for row in train}
        return label_concerns(seen, self.loss_labels or self.labels, metrics)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """The row as text, literals exactly as written, then its label on a line of its own."""
        template = Template.parse(self.template, self.cut)
        text = template.fill(read_fields(row, template.fields, self.columns))
        return f"{text}\n{self.read_label(row)}" if answer else text


@dataclasses.dataclass(frozen=True)
class SequenceClassificationEncoder:
    """A `SequenceClassification` bound to a tokenizer; see `TaskEncoder`."""

    task: SequenceClassification
    setting: TextSetting
    template: BoundTemplate
    pooling: Pooling

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Tokens of a row and where the head reads them; `answer` is the number of the right label.

        Raises ValueError for a missing column or value, an unknown label, and a row too long to be cut.
        """
        values = read_fields(row, self.template.template.fields, self.task.columns)
        context = self.template.encode(values, max_tokens=self.setting.max_tokens)
        return EncodedRow(
            context,
            read=pooled_positions(context, self.pooling),
            pooled=self.pooling == "mean",
            answer=(self.task.labels.index(self.task.read_label(row)),) if answer else (),
            media=read_media(row, self.task.media, self.task.columns, self.setting),
        )

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

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """None: predictions say it all."""
        return {}
