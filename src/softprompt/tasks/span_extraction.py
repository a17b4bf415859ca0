"""Span extraction: an answer is a part of a text, as in SQuAD (Rajpurkar et al., EMNLP 2016).

B rows, T tokens of the context.
"""

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
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import check_columns, read_column, read_fields
from softprompt.tasks.metrics import span_metrics
from softprompt.tasks.reading import check_answered, read_outputs, split_outputs
from softprompt.tasks.template import Template, ValuesWithControlTokens

CONTEXT = "context"
"""The template's field that answers are taken from."""
_CUT_OFF = -1


@dataclasses.dataclass(frozen=True)
class SpanPrediction:
    """The most likely span of the context: its text, its characters (the first, and one past the last) and its probability."""

    text: str
    characters: tuple[int, int]
    probability: float

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SpanExtraction(Task):
    """A head that reads every token of a context finds the start and the end of an answer in it.

    A context that is too long is cut at its end; with `stride` it is read in overlapping windows instead. A training row
    whose answer is cut off teaches nothing, which is warned of. In an evaluation such a row counts and cannot be right.

    Each window is a training row of its own (Devlin et al. 2019, section 4.2, and the released run_squad.py). The right
    answer of a window that does not hold the whole answer is the first token of the row ([CLS]), which the head reads too.
    The prediction is the most likely span of all windows, by its probability in its window. The released code compares sums
    of logits instead, which training determines only up to a constant for each window.

    Raises ValueError (pydantic's) for a template without {context}, a `columns` key that nothing reads, and for an
    unknown setting.
    """

    name: ClassVar[str] = "span-extraction"
    main_metric: ClassVar[str] = "f1"

    template: str = "{question}\n{context}"
    """The row as text; {context} stands for the text that answers are taken from."""
    answer_column: str = "answers"
    """Column that holds the right answers as in SQuAD: {"text": [...], "answer_start": [...]}, with characters counted from
    0. Training uses the first answer, an evaluation the best match."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ."""
    longest_answer: int = Field(default=30, gt=0)
    """Longest predicted answer, in tokens."""
    stride: int | None = Field(default=None, gt=0)
    """The distance between the beginnings of two windows, in tokens, where a context is too long for one (128 in BERT's SQuAD
    runs, with windows of 384). None: the context is cut at its end. Answers longer than the overlap may be missed."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""

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
        """Two logits: an answer starts here, and an answer ends here."""
        return 2

    def bind(self, setting: TextSetting) -> SpanExtractionEncoder:
        """Return the encoder.

        Raises ValueError if the template does not suit the tokenizer or P, or the tokenizer reports no character offsets.
        """
        template = bind_template(Template.parse(self.template, CONTEXT), setting, self.control_tokens)
        check_alignable(template, CONTEXT)
        return SpanExtractionEncoder(self, setting, template)

    def read_answers(self, row: Row) -> list[tuple[str, int]]:
        """Return the right answers of a row, each with the character where it starts.

        Raises ValueError if the column is missing or empty, or an answer is not at the character that its start names.
        """
        found = read_column(row, self.answer_column, self.columns, self.fields)
        shown = reprlib.repr(found)
        if not isinstance(found, Mapping) or not {"text", "answer_start"} <= found.keys():
            raise ValueError(f'answers are {shown}, expected {{"text": [...], "answer_start": [...]}}')
        answers = list(zip(map(str, found["text"]), map(int, found["answer_start"]), strict=True))
        if not answers:
            raise ValueError(
                f"a row has no answer, and questions without an answer are not supported: drop such rows ({shown})"
            )
        context = str(read_column(row, CONTEXT, self.columns, [*self.fields, self.answer_column]))
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

    @property
    def in_windows(self) -> bool:
        """Whether long contexts are read in windows."""
        return self.stride is not None

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """See `span_concerns`."""
        return span_concerns(metrics, part, trained=trained)

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, then its first answer on a line of its own."""
        template = Template.parse(self.template)
        text = template.fill(read_fields(row, template.fields, self.columns, [self.answer_column]))
        return f"{text}\n{self.read_answers(row)[0][0]}" if answer else text


@dataclasses.dataclass(frozen=True)
class SpanExtractionEncoder(TaskEncoder):
    """A `SpanExtraction` bound to a tokenizer; see `TaskEncoder`."""

    task: SpanExtraction
    setting: TextSetting
    template: BoundTemplate

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row, which are read at all tokens of the context. `answer` holds the first and the last token
        of the answer, counted among these.

        Raises ValueError for a missing column or value, an answer that is not in the context, a row whose question alone is
        too long, and an empty context. Warns of an answer that was cut off.
        """
        values = read_fields(row, self.task.fields, self.task.columns, [self.task.answer_column])
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
            elif (
                stride is not None
            ):  # the row's first token, which is read first, says that there is no answer here
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
        """Return the position of a row's first token. Raises ValueError if it belongs to the context."""
        first = next(i for i, atom in enumerate(part.context) if atom >= 0)
        if first in part.positions:
            raise ValueError(
                "with a stride the first token of a row marks a window without an answer, and here it belongs to the context:"
                ' put something in front of {context}, as in "{question} {context}"'
            )
        return first

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the mean of the cross-entropies of start and end over the tokens of the context, (B,), in nats.

        It is 0 for a row whose answer was cut off. answers: (T of all rows, 2).
        Raises ValueError for a row without its answer.
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
        """Return the most likely span of each row, in order; it has at most `longest_answer` tokens."""
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
        """Return the most likely span of a window, by the logits of its tokens, (T, 2)."""
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
    """Return the first and the last token of the most likely span, and its probability.

    Arguments:
        logits: (T, 2), of the start and of the end
        longest: the largest number of tokens of a span
        aside: the number of positions at the front that do not belong to the text. They take a share of the probability
            and cannot be part of a span; tokens are counted after them
    """
    start, end = logits.double().log_softmax(dim=0)[aside:].unbind(dim=1)
    scores = start[:, None] + end[None]  # (T, T)
    allowed = torch.ones_like(scores).triu().tril(longest - 1)
    best = int(scores.masked_fill(allowed == 0, float("-inf")).argmax())
    first, last = divmod(best, len(start))
    return first, last, scores[first, last].exp().item()


def _tokens_of(aligned: Aligned, start: int, stop: int) -> tuple[int, int]:
    """Return the first and the last aligned token of a range of characters, or `_CUT_OFF` twice if a part is missing."""
    inside = [i for i, (first, behind) in enumerate(aligned.spans) if first < stop and behind > start]
    if not inside or aligned.spans[-1][1] < stop or aligned.spans[0][0] > start:
        return _CUT_OFF, _CUT_OFF
    return inside[0], inside[-1]
