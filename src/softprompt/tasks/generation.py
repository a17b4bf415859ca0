"""Text generation: the answer is a text of several tokens that ends with a mark. B rows."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.data import Row
from softprompt.outputs import EncodedRow, TargetLogits
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import check_columns, read_fields, shown_fields
from softprompt.tasks.inputs import read_media
from softprompt.tasks.metrics import generation_metrics
from softprompt.tasks.template import (
    Bos,
    Soft,
    Template,
    ValuesWithControlTokens,
    check_fields,
    slot_in_front,
)
from softprompt.tasks.tokenizing import tokenize
from softprompt.tasks.writing import (
    Choices,
    Generation,
    Writer,
    answering,
    check_choices,
    check_distinct,
    check_generation,
    perplexity,
    reference_likelihoods,
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class TextGeneration(Task):
    """The answer to a text is another text, decoded greedily unless `generation` or `choices` says otherwise.

    Raises ValueError (pydantic's) for a template that does not parse, a target with slots or without fields,
    a `columns` key that nothing reads, and for an unknown setting.
    """

    name: ClassVar[str] = "text-generation"
    main_metric: ClassVar[str] = "rouge_l"

    template: str
    """The row as text, as in "{question}\\nAnswer:"; see `softprompt.tasks.template`."""
    target: str = "{answer}"
    """The answer, made of text and fields without slots. Begin it with a space if the template ends with a word or a
    colon."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template or target -> column of the data, where the two differ."""
    cut: str | None = None
    """Field that is shortened from its end where a row is too long; by default the template's only field."""
    media: str | None = None
    """Column with what the backbone reads besides text; for a speech model it holds waveforms of 16,000 samples per second."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Length of the longest generated answer in tokens, end mark included; this much room is kept when a row is cut."""
    end: str = Field(default="eos", min_length=1)
    """What ends an answer: "eos", the tokenizer's end-of-sequence token; "newline"; or any other text."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""
    generation: Generation = dataclasses.field(default_factory=dict)
    """Options of transformers' `generate` for predictions, as in {"do_sample": True, "temperature": 0.7, "seed": 1}, where
    `seed` sets the random numbers of a call. By default the most probable token is taken each time."""
    choices: Choices = ()
    """The texts that an answer is one of, each put into the target in the place of its field: the one that is most probable
    as a whole is the prediction. By default any text is written."""

    @model_validator(mode="after")
    def _check(self) -> TextGeneration:
        template, target = Template.parse(self.template, self.cut), Template.parse(self.target)
        if any(isinstance(part, Soft | Bos) for part in target.parts):
            raise ValueError(
                f"target {self.target!r} has a slot; soft slots and {{bos}} belong in the template"
            )
        if not target.fields:
            raise ValueError(f"target {self.target!r} has no field: every row would have the same answer")
        check_fields(template, self.media)
        check_columns(self.columns, [*template.fields, *target.fields, *filter(None, [self.media])])
        check_generation(self.generation)
        check_choices(self.choices, self.generation)
        if self.choices and len(target.fields) != 1:
            raise ValueError(
                f"choices stand for one field, and target {self.target!r} has {len(target.fields)}"
            )
        return self

    @property
    def writes_text(self) -> bool:
        """Whether any text may be the answer, and not one of `choices`."""
        return not self.choices

    def answering(
        self, generation: Mapping[str, Any] | None, choices: Sequence[str] | None
    ) -> TextGeneration:
        """See `Task.answering`."""
        changed: TextGeneration = answering(self, generation, choices)
        return changed

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields, without those of the target."""
        return Template.parse(self.template, self.cut).fields

    @property
    def end_text(self) -> str | None:
        """The text that ends an answer; None for the EOS token."""
        return {"eos": None, "newline": "\n"}.get(self.end, self.end)

    def bind(self, setting: TextSetting) -> TextGenerationEncoder:
        """Return the encoder. Raises ValueError if the template does not suit P, or the tokenizer lacks the EOS token."""
        eos = setting.tokenizer.eos_token_id
        if self.end == "eos" and eos is None:
            raise ValueError(
                'end="eos", but the tokenizer has no EOS token; use end="newline" or another text'
            )
        template = bind_template(Template.parse(self.template, self.cut), setting, self.control_tokens)
        return TextGenerationEncoder(self, setting, template, Template.parse(self.target))

    def evaluate(self, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """See `generation_metrics`. Perplexity needs the model: `TextGenerationEncoder.perplexity`.

        A reference counts as it is written, special tokens included; `judge` knows the tokenizer and leaves them out.
        """
        return generation_metrics(predictions, [self._reference(row).strip() for row in rows])

    def judge(self, encoder: TaskEncoder, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """`evaluate` against references that are read as predictions are, without special tokens (T5's sentinels)."""
        assert isinstance(encoder, TextGenerationEncoder)
        return generation_metrics(predictions, [encoder.reference(row) for row in rows])

    def with_prompt_in_front(self, tokenizer: PreTrainedTokenizerBase) -> TextGeneration:
        """See `slot_in_front`."""
        return dataclasses.replace(self, template=slot_in_front(self.template, tokenizer))

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, then its reference without the end mark."""
        template = Template.parse(self.template, self.cut)
        text = template.fill(shown_fields(row, template.fields, self.columns, images=template.images))
        return text + self._reference(row) if answer else text

    def _reference(self, row: Row) -> str:
        target = Template.parse(self.target)
        return target.fill(read_fields(self.answered(row), target.fields, self.columns))

    def answered(self, row: Row) -> Row:
        """Return the row with the answer that is learned, where it holds several; usually it is unchanged."""
        return row


@dataclasses.dataclass(frozen=True)
class TextGenerationEncoder(TaskEncoder):
    """A `TextGeneration` bound to a tokenizer; see `TaskEncoder`."""

    task: TextGeneration
    setting: TextSetting
    template: BoundTemplate
    target: Template

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row; with `answer`, its only target is the reference with its end mark, else the choices.

        A row too long is cut to leave room for `max_new_tokens` or the reference, whichever is longer, so
        that its context is the same in training and in prediction (unless the reference is the longer one).
        Raises ValueError for a missing column or value, a reference that holds the end mark, and a row
        too long to be cut.
        """
        values = self.template.read(row, self.task.columns)
        targets = (self._target(row),) if answer else self._choices
        reserved = max(self.task.max_new_tokens, *map(len, targets), *map(len, self._choices), 0)
        context = self.template.encode(values, max_tokens=self.setting.max_tokens, reserved=reserved)
        media = read_media(row, self.task.media, self.task.columns, self.setting)
        gold = 0 if answer else None
        pictures = self.template.pictures(values)
        return EncodedRow(
            context, targets, gold, media=media, origin=self._choices or None, pictures=pictures
        )

    def reference(self, row: Row) -> str:
        """Return the right answer of a row as `predict` reads it: stripped, and without the tokenizer's special tokens."""
        text = self._written(row)
        for token in self.setting.tokenizer.all_special_tokens:
            text = text.replace(token, "")
        return text.strip()

    def _written(self, row: Row) -> str:
        return self.target.fill(read_fields(self.task.answered(row), self.target.fields, self.task.columns))

    @cached_property
    def _choices(self) -> tuple[tuple[int, ...], ...]:
        """The tokens of each choice. Raises ValueError for one that holds the end mark, or that is read as another is."""
        texts = [self.target.fill(dict.fromkeys(self.target.fields, choice)) for choice in self.task.choices]
        return check_distinct(self.task.choices, [self._with_end(text) for text in texts])

    def _target(self, row: Row) -> tuple[int, ...]:
        return self._with_end(self._written(row))

    def _with_end(self, text: str) -> tuple[int, ...]:
        if (end := self.task.end_text) is not None:
            if end in text:
                raise ValueError(
                    f"the reference {reprlib.repr(text)} holds the end mark {end!r}, so it could never be"
                    " generated whole; choose another `end`, or replace the mark in the data"
                )
            return tuple(self.setting.ids(text + end))
        return (*self.setting.ids(text), self.setting.tokenizer.eos_token_id)

    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        """Return -log p of each reference, the mean over its tokens, (B,), in nats per token.

        Raises ValueError for a row without its reference.
        """
        sums, lengths = reference_likelihoods(logits)
        return -sums / lengths

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Return the generated text of each row up to the end mark, stripped, in order; with choices the most probable one.

        `on_batch` is called with the number of rows done so far.
        """
        task = self.task
        writer = Writer(
            tokenizer=self.setting.tokenizer,
            max_new_tokens=task.max_new_tokens,
            stops=self._stop_ids(),
            end_text=task.end_text,
            generation=task.generation,
            choices=task.choices,
        )
        return writer.predict(model, rows, batch_size=batch_size, on_batch=on_batch)

    def _stop_ids(self) -> list[int]:
        """Return the tokens that stop generation. An end text of several tokens is searched for in the text instead."""
        eos = self.setting.tokenizer.eos_token_id
        stops = [] if eos is None else [eos]
        end = tokenize(self.setting.tokenizer, self.task.end_text or "")
        return stops + end if len(end) == 1 else stops

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Return the perplexity of the references."""
        return {"perplexity": self.perplexity(model, rows, batch_size=batch_size)}

    def perplexity(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> float:
        """See `softprompt.tasks.writing.perplexity`."""
        return perplexity(model, rows, batch_size=batch_size, on_batch=on_batch)
