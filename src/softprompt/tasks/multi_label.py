"""Multi-label classification: a trained head says of each label whether a text has it. B rows, K labels."""

from __future__ import annotations

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import check_columns, read_column, shown_fields
from softprompt.tasks.labels import Names, check_labels
from softprompt.tasks.reading import (
    Pooling,
    check_answered,
    check_pooling,
    default_pooling,
    pooled_positions,
    read_outputs,
)
from softprompt.tasks.template import Template, ValuesWithControlTokens, check_fields


@dataclasses.dataclass(frozen=True)
class LabelsPrediction:
    """The labels that a text has, and the probability of every label; each stands for itself, so that they have no sum."""

    labels: tuple[str, ...]
    probabilities: dict[str, float]


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False))
class MultiLabelClassification(Task):
    """A head, trained with the prompt on the binary cross-entropy of each label, says which of K labels a text has.

    Raises ValueError (pydantic's) for a template that does not parse, fewer than two labels, a `columns` key that nothing
    reads, and for an unknown setting.
    """

    name: ClassVar[str] = "multi-label-classification"
    main_metric: ClassVar[str] = "micro_f1"

    template: str
    """The row as text, as in "{text}"; see `softprompt.tasks.template`."""
    labels: Names
    """The labels; their order is that of the head's outputs."""
    label_column: str = "labels"
    """Column that holds the right labels: a list, a list as JSON, or a text in which `separator` stands between them. It may
    be empty."""
    separator: str = Field(default="|", min_length=1)
    """What stands between the labels where they are one text; blanks around it do not count."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability from which on a text is given a label."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the only field."""
    pooling: Pooling | None = None
    """As in SequenceClassification."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """As in SequenceClassification."""

    @model_validator(mode="after")
    def _check(self) -> MultiLabelClassification:
        template = Template.parse(self.template, self.cut)
        check_fields(template)
        check_columns(self.columns, [*template.fields, self.label_column])
        check_labels(self.labels)
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template, self.cut).fields

    @property
    def outputs(self) -> int:
        """K: one logit for each label."""
        return len(self.labels)

    @property
    def label_words(self) -> Mapping[str, Sequence[str]]:
        """The labels' own names."""
        return {label: (label,) for label in self.labels}

    def read_labels(self, row: Row) -> tuple[str, ...]:
        """Return the right labels of a row, in the task's order. Raises ValueError for one that is not among `labels`."""
        column = self.columns.get(self.label_column, self.label_column)
        value = row[column] if row.get(column) == "" else read_column(row, self.label_column, self.columns)
        found = self._listed(value)
        if strange := [label for label in found if label not in self.labels]:
            raise ValueError(
                f"label {strange[0]!r} is not among the labels {list(self.labels)}, in {reprlib.repr(value)} of column"
                f" {column!r}: add it to labels, or set `separator` if another one stands between labels"
            )
        return tuple(label for label in self.labels if label in found)

    def _listed(self, value: Any) -> list[str]:
        if isinstance(value, str) and value.startswith("["):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise ValueError(
                    f"labels {reprlib.repr(value)} begin like a list as JSON, and are none: {error}"
                ) from error
        if isinstance(value, str):
            value = [part.strip() for part in value.split(self.separator)]
        if not isinstance(value, list | tuple | set):
            value = [value]
        return [str(label) for label in value if str(label)]

    def bind(self, setting: TextSetting) -> MultiLabelEncoder:
        """Raises ValueError where the template does not suit the tokenizer or P, or `pooling` the family."""
        pooling = self.pooling or default_pooling(setting)
        check_pooling(pooling, setting)
        template = bind_template(Template.parse(self.template, self.cut), setting, self.control_tokens)
        return MultiLabelEncoder(self, setting, template, pooling)

    def evaluate(self, predictions: Sequence[LabelsPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `label_set_metrics`."""
        gold = [self.read_labels(row) for row in rows]
        return label_set_metrics(gold, [prediction.labels for prediction in predictions], self.labels)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, then its labels on a line of their own."""
        template = Template.parse(self.template, self.cut)
        text = template.fill(shown_fields(row, template.fields, self.columns, images=template.images))
        return f"{text}\n{', '.join(self.read_labels(row))}" if answer else text


@dataclasses.dataclass(frozen=True)
class MultiLabelEncoder(TaskEncoder):
    """A `MultiLabelClassification` bound to a tokenizer; see `TaskEncoder`."""

    task: MultiLabelClassification
    setting: TextSetting
    template: BoundTemplate
    pooling: Pooling

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row and the positions that the head reads; `answer` has a 1 for each right label, else a 0.

        Raises ValueError for a missing column or value, an unknown label, and a row too long to be cut.
        """
        values = self.template.read(row, self.task.columns)
        context = self.template.encode(values, max_tokens=self.setting.max_tokens)
        right = self.task.read_labels(row) if answer else ()
        return EncodedRow(
            context,
            read=pooled_positions(context, self.pooling),
            pooled=self.pooling == "mean",
            answer=tuple(int(label in right) for label in self.task.labels) if answer else (),
            pictures=self.template.pictures(values),
        )

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the binary cross-entropy of each row, the mean over its labels, (B,), in nats. answers: (B, K)."""
        check_answered(rows)
        right = torch.tensor(
            [row.answer for row in rows], device=answers.device, dtype=answers.dtype
        )  # (B, K)
        losses = functional.binary_cross_entropy_with_logits(answers, right, reduction="none")
        return losses.mean(dim=1)  # (B, K) -> (B,)

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[LabelsPrediction]:
        """Return the labels of each row, in order."""

        def read(row: EncodedRow, logits: Tensor) -> LabelsPrediction:
            shares = dict(zip(self.task.labels, logits[0].double().sigmoid().tolist(), strict=True))
            return LabelsPrediction(tuple(k for k, p in shares.items() if p >= self.task.threshold), shares)

        return read_outputs(model, rows, batch_size, on_batch, read)


def label_set_metrics(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], labels: Sequence[str]
) -> dict[str, Any]:
    """Return metrics of pairs of right and predicted sets of labels.

    micro_f1        F1 over all pairs of a row and a label
    macro_f1        mean F1 over the labels that occur, as right or as predicted ones
    exact_match     share of rows whose labels are all right, and no others given
    label_accuracy  share of pairs of a row and a label that are right
    by_label        label -> its F1, for the labels that occur
    rows            how many rows

    Raises ValueError if there are no pairs or the lengths differ.
    """
    if len(gold) != len(predicted) or not gold:
        raise ValueError(
            f"{len(predicted)} predictions for {len(gold)} rows; there must be one for each, and at least one"
        )
    pairs = [(set(g), set(p)) for g, p in zip(gold, predicted, strict=True)]
    hits = {k: sum(k in g and k in p for g, p in pairs) for k in labels}
    given = {k: sum((k in g) + (k in p) for g, p in pairs) for k in labels}
    by_label = {k: 2 * hits[k] / given[k] for k in labels if given[k]}
    wrong = sum(len(g ^ p) for g, p in pairs)
    return {
        "micro_f1": 2 * sum(hits.values()) / sum(given.values()) if by_label else 1.0,
        "macro_f1": sum(by_label.values()) / len(by_label) if by_label else 1.0,
        "exact_match": sum(g == p for g, p in pairs) / len(pairs),
        "label_accuracy": 1 - wrong / (len(pairs) * len(labels)),
        "rows": len(pairs),
        "by_label": by_label,
    }
