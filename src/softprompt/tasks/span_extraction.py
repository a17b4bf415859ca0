"""Answers that are a part of a text, as in SQuAD (Rajpurkar et al., EMNLP 2016). B rows, T tokens of the context."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.concerns import cut_off_answer, span_concerns, warn_of
from softprompt.data import Row
from softprompt.outputs import EncodedRow, windows_of
from softprompt.tasks.alignment import Aligned, align, check_alignable, windows
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.columns import check_columns, read_column, read_fields
from softprompt.tasks.metrics import span_metrics
from softprompt.tasks.reading import check_answered, read_outputs, split_outputs
from softprompt.tasks.template import BoundTemplate, Template

CONTEXT = "context"
"""The template's field that answers are taken from."""
_CUT_OFF = -1


@dataclasses.dataclass(frozen=True)
class SpanPrediction:
    """The likeliest span of the context: its text, its characters (first, one behind the last), its probability."""

    text: str
    characters: tuple[int, int]
    probability: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SpanExtraction(Task):
    """Start and end of an answer in a context, by a head that reads every token of the context.

    A context that is too long is cut at its end; with `stride`, read in overlapping windows instead. A training row whose
    answer is cut off trains nothing, and is warned of; in an evaluation it counts, and cannot be right.

    Windows (Devlin et al. 2019, section 4.2 and the released run_squad.py): each is trained on as a row of its own. One that
    does not hold the whole answer answers with the first token of the row ([CLS]), which the head reads too. Predicted is
    the likeliest span of all windows, by its probability in its window; the released code compares sums of logits, which
    training leaves free by a constant for each window.
    Raises ValueError (pydantic's) for a template without {context}, a `columns` key that nothing reads, and for an
    unknown setting.
    """

    name: ClassVar[str] = "span-extraction"
    main_metric: ClassVar[str] = "f1"

    template: str = "{question}\n{context}"
    """The row as text; {context} stands for the text that answers are taken from."""
    answer_column: str = "answers"
    """Column that holds the right answers as SQuAD has them: {"text": [...], "answer_start": [...]}, characters from 0.
    Training takes the first, an evaluation the best of them."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    longest_answer: int = Field(default=30, gt=0)
    """Longest predicted answer, in tokens."""
    stride: int | None = Field(default=None, gt=0)
    """A context that is too long is read in windows that begin so many of its tokens one behind the other (128 in BERT's
    SQuAD runs, of 384 in all); None: it is cut at its end. Answers longer than the windows' overlap may be missed."""

    @model_validator(mode="after")
    def _check(self) -> SpanExtraction:
        template = Template.parse(self.template, CONTEXT)
        check_columns(self.columns, [*template.fields, self.answer_column])
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template).fields

    @property
    def outputs(self) -> int:
        """Two logits: an answer starts here, an answer ends here."""
        return 2

    def bind(self, setting: TextSetting) -> SpanExtractionEncoder:
        """Raises ValueError where the template does not suit the tokenizer or P, or the tokenizer tells no places."""
        template = Template.parse(self.template, CONTEXT).bind(setting)
        check_alignable(template, CONTEXT)
        return SpanExtractionEncoder(self, setting, template)

    def read_answers(self, row: Row) -> list[tuple[str, int]]:
        """The right answers of a row and the characters where they start.

        Raises ValueError if the column is missing, holds none, or one does not stand where it is said to.
        """
        found = read_column(row, self.answer_column, self.columns)
        shown = reprlib.repr(found)
        if not isinstance(found, Mapping) or not {"text", "answer_start"} <= found.keys():
            raise ValueError(f'answers are {shown}, expected {{"text": [...], "answer_start": [...]}}')
        answers = list(zip(map(str, found["text"]), map(int, found["answer_start"]), strict=True))
        if not answers:
            raise ValueError(
                f"a row has no answer: questions that cannot be answered are not supported; drop them ({shown})"
            )
        context = str(read_column(row, CONTEXT, self.columns))
        for text, start in answers:
            if not text or context[start : start + len(text)] != text:
                raise ValueError(
                    f"answer {text!r} is said to start at character {start}, where the context has"
                    f" {context[start : start + len(text)]!r}"
                )
        return answers

    def evaluate(self, predictions: Sequence[SpanPrediction], rows: Sequence[Row]) -> dict[str, Any]:
        """See `span_metrics`."""
        references = [[text for text, _ in self.read_answers(row)] for row in rows]
        return span_metrics([prediction.text for prediction in predictions], references)

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """See `span_concerns`."""
        return span_concerns(metrics, part, trained=trained)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """The row as text, literals exactly as written, then its first answer on a line of its own."""
        template = Template.parse(self.template)
        text = template.fill(read_fields(row, template.fields, self.columns))
        return f"{text}\n{self.read_answers(row)[0][0]}" if answer else text


@dataclasses.dataclass(frozen=True)
class SpanExtractionEncoder(TaskEncoder):
    """A `SpanExtraction` bound to a tokenizer; see `TaskEncoder`."""

    task: SpanExtraction
    setting: TextSetting
    template: BoundTemplate

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Tokens of a row, read at all tokens of the context; `answer`: the first and the last of them in the answer.

        Raises ValueError for a missing column or value, an answer that is not in the context, and a row whose question
        alone is too long or whose context is empty. Warns of an answer that was cut off.
        """
        values = read_fields(row, self.task.fields, self.task.columns)
        room, stride = self.setting.max_tokens, self.task.stride
        if stride is None:
            parts = [align(self.template, values, CONTEXT, room)]
        else:
            parts = windows(self.template, values, CONTEXT, room, stride)
        if not parts[0].positions:
            raise ValueError(
                f"no token of the context is left, max_tokens is {self.setting.max_tokens}: raise it, or drop"
                f" row {reprlib.repr(dict(row))}"
            )
        found = [(_CUT_OFF, _CUT_OFF)] * len(parts)
        if answer:
            text, start = self.task.read_answers(row)[0]
            start += len(text) - len(text.lstrip())
            found = [_tokens_of(part, start, start + len(text.strip())) for part in parts]
            if all(_CUT_OFF in gold for gold in found):
                warn_of(cut_off_answer(stride))
            elif stride is not None:  # the first thing that is read is the row's first token: no answer here
                found = [(0, 0) if _CUT_OFF in gold else (gold[0] + 1, gold[1] + 1) for gold in found]
        encoded = [
            EncodedRow(
                part.context,
                read=part.positions if stride is None else (self._first(part), *part.positions),
                answer=gold if answer else (),
                origin=(values[CONTEXT], part.spans),
            )
            for part, gold in zip(parts, found, strict=True)
        ]
        return dataclasses.replace(encoded[0], windows=tuple(encoded[1:]))

    def _first(self, part: Aligned) -> int:
        """Where a row's first token stands. Raises ValueError if it is one of the context."""
        first = next(i for i, atom in enumerate(part.context) if atom >= 0)
        if first in part.positions:
            raise ValueError(
                "with a stride the first token of a row answers where its window has no answer, and here it is one of the"
                ' context: put something in front of {context}, as in "{question} {context}"'
            )
        return first

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Mean of the cross-entropies of start and end over the context's tokens, (B,), nats. answers: (T of all rows, 2).

        0 for a row whose answer was cut off. Raises ValueError for a row without its answer.
        """
        check_answered(rows)
        losses = []
        for row, logits in zip(rows, split_outputs(answers, rows), strict=True):
            start, end = map(int, row.answer)
            if start == _CUT_OFF:
                losses.append(logits.sum() * 0)
            else:
                likelihoods = logits.log_softmax(dim=0)  # (T, 2)
                losses.append(-(likelihoods[start, 0] + likelihoods[end, 1]) / 2)
        return torch.stack(losses)

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[SpanPrediction]:
        """The likeliest span of each row, in order: not backwards, and no longer than `longest_answer`."""
        parts = [(i, part) for i, row in enumerate(rows) for part in windows_of(row)]

        def tell(done: int) -> None:
            if on_batch is not None:
                on_batch(done * len(rows) // len(parts))

        predictions: dict[int, SpanPrediction] = {}
        found = read_outputs(model, [part for _, part in parts], batch_size, tell, self._likeliest)
        for (i, _), prediction in zip(parts, found, strict=True):
            if i not in predictions or prediction.probability > predictions[i].probability:
                predictions[i] = prediction
        return [predictions[i] for i in range(len(rows))]

    def _likeliest(self, part: EncodedRow, logits: Tensor) -> SpanPrediction:
        """The likeliest span of a window, by logits of its tokens, (T, 2)."""
        aside = int(self.task.stride is not None)
        start, end, probability = best_span(logits, self.task.longest_answer, aside=aside)
        context, spans = part.origin
        first, behind = spans[start][0], spans[end][1]
        text = context[first:behind]
        # Byte-level tokens carry the space in front of them.
        first += len(text) - len(text.lstrip())
        behind -= len(text) - len(text.rstrip())
        return SpanPrediction(context[first:behind], (first, max(first, behind)), probability)


def best_span(logits: Tensor, longest: int, *, aside: int = 0) -> tuple[int, int, float]:
    """First and last token of the likeliest span of at most `longest` tokens, and its probability. logits: (T, 2).

    aside: so many first positions are no part of the text: they take probability and give no span; tokens count behind them.
    """
    start, end = logits.double().log_softmax(dim=0)[aside:].unbind(dim=1)
    scores = start[:, None] + end[None]  # (T, T)
    allowed = torch.ones_like(scores).triu().tril(longest - 1)
    best = int(scores.masked_fill(allowed == 0, float("-inf")).argmax())
    first, last = divmod(best, len(start))
    return first, last, scores[first, last].exp().item()


def _tokens_of(aligned: Aligned, start: int, stop: int) -> tuple[int, int]:
    """The first and the last of the aligned tokens that cover a range of characters; not all there: `_CUT_OFF` for both."""
    inside = [i for i, (first, behind) in enumerate(aligned.spans) if first < stop and behind > start]
    if not inside or aligned.spans[-1][1] < stop or aligned.spans[0][0] > start:
        return _CUT_OFF, _CUT_OFF
    return inside[0], inside[-1]
