"""Sequence classification: a trained head gives a label for a whole text. B rows, K labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.data import Row
from softprompt.later import LATER
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.classes import ClassPrediction, class_losses, predict_classes, weighted, with_balance
from softprompt.tasks.columns import check_columns, shown_fields
from softprompt.tasks.inputs import read_media
from softprompt.tasks.labels import Labelling, Names, Values, check_labels
from softprompt.tasks.reading import (
    Pooling,
    check_pooling,
    default_pooling,
    pooled_positions,
)
from softprompt.tasks.template import Template, ValuesWithControlTokens, check_fields


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SequenceClassification(Task):
    """A head, trained with the prompt, gives one of K labels for a text.

    Raises ValueError (pydantic's) for a template that does not parse, fewer than two labels, a `columns` key that
    nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "sequence-classification"
    main_metric: ClassVar[str] = "accuracy"
    left_out_of_runs: ClassVar[tuple[str, ...]] = ("media",)

    template: str
    """The row as text, as in "{text}" or "{premise} {hypothesis:cut}"; see `softprompt.tasks.template`."""
    labels: Names
    """The labels; their order is that of the head's outputs."""
    label_column: str = "label"
    """Column that holds the right label; its values are compared as text, so 1 is "1" and True is "True"."""
    label_values: Values = dataclasses.field(default_factory=dict)
    """What the data writes -> label, where the two differ, as in {"0": "negative", "1": "positive"}."""
    loss_labels: Names | None = None
    """Labels among which the loss is computed, as if there were no others; a prediction is any label. By default all."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the only field."""
    media: str | None = None
    """Column with what the backbone reads besides text (a sound or a spectrogram), if it reads anything else."""
    pooling: Pooling | None = None
    """Which of the last hidden states the head reads: that of the first or the last token, or the mean of all. Virtual tokens
    never count. The default is the first in an encoder, the last in a decoder, and the mean in an encoder-decoder."""
    class_weights: Annotated[Mapping[str, float] | Literal["balanced"] | None, LATER] = None
    """Label -> the factor of the loss of its rows, 1 for the others. "balanced": rows / (K * rows of the label), over the
    training rows, so that every label weighs the same and the mean factor is 1."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""

    @model_validator(mode="after")
    def _check(self) -> SequenceClassification:
        template = Template.parse(self.template, self.cut)
        check_fields(template, self.media)
        check_columns(self.columns, [*template.fields, self.label_column, *filter(None, [self.media])])
        check_labels(
            self.labels,
            loss_labels=self.loss_labels or (),
            label_values=self.label_values.values(),
            class_weights=weighted(self.class_weights),
        )
        return self

    def for_rows(self, train: Sequence[Row]) -> Task:
        """Return the task with its balanced weights of classes in numbers."""
        return with_balance(self, train)

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
        template = bind_template(Template.parse(self.template, self.cut), setting, self.control_tokens)
        return SequenceClassificationEncoder(self, setting, template, pooling)

    def evaluate(self, predictions: Sequence[ClassPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `classification_metrics`."""
        return self.labelling.metrics(predictions, rows)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, then its label on a line of its own."""
        template = Template.parse(self.template, self.cut)
        text = template.fill(
            shown_fields(row, template.fields, self.columns, [self.label_column], images=template.images)
        )
        return f"{text}\n{self.read_label(row)}" if answer else text


@dataclasses.dataclass(frozen=True)
class SequenceClassificationEncoder(TaskEncoder):
    """A `SequenceClassification` bound to a tokenizer; see `TaskEncoder`."""

    task: SequenceClassification
    setting: TextSetting
    template: BoundTemplate
    pooling: Pooling

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row and the positions that the head reads; `answer` is the number of the right label.

        Raises ValueError for a missing column or value, an unknown label, and a row too long to be cut.
        """
        values = self.template.read(row, self.task.columns, [self.task.label_column])
        context = self.template.encode(values, max_tokens=self.setting.max_tokens)
        return EncodedRow(
            context,
            read=pooled_positions(context, self.pooling),
            pooled=self.pooling == "mean",
            answer=(self.task.labels.index(self.task.read_label(row)),) if answer else (),
            media=read_media(row, self.task.media, self.task.columns, self.setting),
            pictures=self.template.pictures(values),
        )

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the cross-entropy of each row, (B,), in nats. answers: (B, K). See `class_losses`."""
        return class_losses(answers, rows, self.task.labels, self.task.loss_labels, self.task.class_weights)

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
