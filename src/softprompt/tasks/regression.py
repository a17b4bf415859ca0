"""Regression: a trained head gives a number for a text (similarity, quality, a rating). B rows."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.concerns import number_concerns, value_concerns
from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import check_columns, read_column, shown_fields
from softprompt.tasks.metrics import regression_metrics
from softprompt.tasks.reading import (
    Pooling,
    check_answered,
    check_pooling,
    default_pooling,
    pooled_positions,
    read_outputs,
)
from softprompt.tasks.template import Template, ValuesWithControlTokens, check_fields


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False))
class Regression(Task):
    """A head gives a number for a text; it is trained with the prompt on the squared error.

    Raises ValueError (pydantic's) for a template that does not parse, a range that is empty, a `columns` key that
    nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "regression"
    main_metric: ClassVar[str] = "pearson"

    template: str
    """The row as text, as in "{first} {second:cut}"; see `softprompt.tasks.template`."""
    low: float = 0.0
    """Lowest value in the data. The unit of the head is half of the range from `low` to `high`, and its zero is the middle,
    so that it starts in the middle and learns equally fast in every unit. Predictions may lie outside the range."""
    high: float = 1.0
    """Highest value in the data."""
    value_column: str = "value"
    """Column that holds the right value."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the only field."""
    pooling: Pooling | None = None
    """As in SequenceClassification."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""

    @model_validator(mode="after")
    def _check(self) -> Regression:
        template = Template.parse(self.template, self.cut)
        check_fields(template)
        check_columns(self.columns, [*template.fields, self.value_column])
        if not self.low < self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: low must be below high")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template, self.cut).fields

    @property
    def outputs(self) -> int:
        """One number."""
        return 1

    def bind(self, setting: TextSetting) -> RegressionEncoder:
        """Raises ValueError where the template does not suit the tokenizer or P, or `pooling` the family."""
        pooling = self.pooling or default_pooling(setting)
        check_pooling(pooling, setting)
        return RegressionEncoder(
            self,
            setting,
            bind_template(Template.parse(self.template, self.cut), setting, self.control_tokens),
            pooling,
        )

    def read_value(self, row: Row) -> float:
        """Return the right value of a row. Raises ValueError if its column is missing or does not hold a number."""
        found = read_column(row, self.value_column, self.columns, self.fields)
        try:
            value = float(found)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the value of row {reprlib.repr(dict(row))} is {found!r}, expected a number"
            ) from error
        if not math.isfinite(value):
            raise ValueError(
                f"the value of row {reprlib.repr(dict(row))} is {found!r}, expected a finite number: fill or drop such rows"
            )
        return value

    def evaluate(self, predictions: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
        """See `regression_metrics`."""
        return regression_metrics([self.read_value(row) for row in rows], predictions)

    def concerns_about_rows(self, train: Sequence[Row]) -> list[str]:
        """See `value_concerns`."""
        return value_concerns([self.read_value(row) for row in train], self.low, self.high)

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """See `number_concerns`."""
        return number_concerns(metrics, part, trained=trained)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """The row as text, literals exactly as written, then its value on a line of its own."""
        template = Template.parse(self.template, self.cut)
        text = template.fill(
            shown_fields(row, template.fields, self.columns, [self.value_column], images=template.images)
        )
        return f"{text}\n{self.read_value(row):g}" if answer else text


@dataclasses.dataclass(frozen=True)
class RegressionEncoder(TaskEncoder):
    """A `Regression` bound to a tokenizer; see `TaskEncoder`."""

    task: Regression
    setting: TextSetting
    template: BoundTemplate
    pooling: Pooling

    @property
    def _middle(self) -> float:
        return (self.task.low + self.task.high) / 2

    @property
    def _unit(self) -> float:
        return (self.task.high - self.task.low) / 2

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row and the positions that the head reads; `answer` is the value in units of half the range.

        Raises ValueError for a missing column or value, and a row too long to be cut.
        """
        values = self.template.read(row, self.task.columns, [self.task.value_column])
        context = self.template.encode(values, max_tokens=self.setting.max_tokens)
        return EncodedRow(
            context,
            read=pooled_positions(context, self.pooling),
            pooled=self.pooling == "mean",
            answer=((self.task.read_value(row) - self._middle) / self._unit,) if answer else (),
            pictures=self.template.pictures(values),
        )

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the squared error of each row, (B,), in units of half the range. answers: (B, 1)."""
        check_answered(rows)
        right = torch.tensor([row.answer[0] for row in rows], device=answers.device, dtype=answers.dtype)
        return (answers[:, 0] - right).square()  # (B, 1) -> (B,)

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[float]:
        """Return the value of each row, in order."""

        def read(row: EncodedRow, output: Tensor) -> float:
            return output.item() * self._unit + self._middle

        return read_outputs(model, rows, batch_size, on_batch, read)
