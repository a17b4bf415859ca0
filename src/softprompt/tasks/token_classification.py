"""Token classification: a tag for each word (named entities, parts of speech, slots). B rows, W words, K tags."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor
from torch.nn import functional

from softprompt.concerns import class_concerns, unseen_labels
from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.alignment import align, check_alignable
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import check_columns, read_column, read_fields
from softprompt.tasks.labels import Names
from softprompt.tasks.metrics import ENTITY_MARKS, OUTSIDE, tag_metrics
from softprompt.tasks.reading import check_answered, read_outputs, split_outputs
from softprompt.tasks.template import Template, ValuesWithControlTokens

WORDS = "words"
"""The template's field that holds the words."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class TokenClassification(Task):
    """A head gives a tag for each word of a row; it reads the first token of the word.

    The words of a row are a list (or a text, which is split at spaces); the template receives them joined by spaces. If a
    row is too long, its last words are cut off: they take no part in training and are predicted as "O".
    Raises ValueError (pydantic's) for a template without {words}, fewer than two tags, a `columns` key that nothing
    reads, and for an unknown setting.
    """

    name: ClassVar[str] = "token-classification"
    main_metric: ClassVar[str] = "f1"

    tags: Names
    """The tags; their order is that of the head's outputs. Entities are written B-TYPE, I-TYPE and O
    (IOB), also with E- and S- (IOBES) or L- and U- (BILOU)."""
    template: str = "{words}"
    """The row as text; {words} stands for the words."""
    tag_column: str = "tags"
    """Column that holds a tag for each word: a name, or a number counting from 0 in `tags`."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name in the template -> column of the data, where the two differ, as in {"words": "tokens"}."""
    control_tokens: ValuesWithControlTokens = dataclasses.field(default="text", compare=False)
    """What a control token of the tokenizer ("</s>", "[MASK]") is in the text of a row: text, or that token. Prompts that were
    saved before there was a choice have tokens, and answer as they did."""

    @model_validator(mode="after")
    def _check(self) -> TokenClassification:
        template = Template.parse(self.template, WORDS)
        check_columns(self.columns, [*template.fields, self.tag_column])
        if len(self.tags) < 2:
            raise ValueError(f"tags are {list(self.tags)}: two or more are needed")
        self._check_entities()
        return self

    def _check_entities(self) -> None:
        """Raise ValueError if there are entities together with tags that would not be counted as entities."""
        marks = {tag: tag.partition("-")[0] for tag in self.tags if re.match("[A-Z]-", tag)}
        if not {"B", "I"} & set(marks.values()):
            return
        if OUTSIDE not in self.tags:
            raise ValueError(
                f'tags are {list(self.tags)}: entities need the tag "O" for words that are in none'
            )
        if unknown := [tag for tag, mark in marks.items() if mark not in ENTITY_MARKS]:
            raise ValueError(
                f"tag {unknown[0]!r} stands among entities and says neither where one begins nor where it ends: known are"
                f" {', '.join(f'{mark}-' for mark in ENTITY_MARKS)} and {OUTSIDE}; convert the tags to IOB2 (B-TYPE, I-TYPE, O)"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the template's fields."""
        return Template.parse(self.template).fields

    @property
    def outputs(self) -> int:
        """K: one logit for each tag."""
        return len(self.tags)

    def bind(self, setting: TextSetting) -> TokenClassificationEncoder:
        """Return the encoder.

        Raises ValueError if the template does not suit the tokenizer or P, or the tokenizer reports no character offsets.
        """
        template = bind_template(Template.parse(self.template, WORDS), setting, self.control_tokens)
        check_alignable(template, WORDS)
        return TokenClassificationEncoder(self, setting, template)

    def read_words(self, row: Row) -> list[str]:
        """Return the words of a row. Raises ValueError if its column is missing or holds neither a list nor a text."""
        found = read_column(row, WORDS, self.columns, [*self.fields, self.tag_column])
        if isinstance(found, str):
            return found.split()
        try:
            return [str(word) for word in found]
        except TypeError as error:
            raise ValueError(
                f"the words of row {reprlib.repr(dict(row))} are {found!r}, expected a list"
            ) from error

    def read_tags(self, row: Row) -> list[str]:
        """Return the tags of a row's words. Raises ValueError for an unknown tag, and if there is not one tag for each word."""
        found = read_column(row, self.tag_column, self.columns, self.fields)
        given = found.split() if isinstance(found, str) else list(found)
        known = {tag: tag for tag in self.tags} | {str(i): tag for i, tag in enumerate(self.tags)}
        if unknown := [tag for tag in given if str(tag) not in known]:
            raise ValueError(
                f"tag {unknown[0]!r} is not among the tags {list(self.tags)}, in row {reprlib.repr(dict(row))}"
            )
        if len(given) != (words := len(self.read_words(row))):
            raise ValueError(
                f"a row has {words} words and {len(given)} tags: each word needs one, in {reprlib.repr(dict(row))}"
            )
        return [known[str(tag)] for tag in given]

    def evaluate(self, predictions: Sequence[Sequence[str]], rows: Sequence[Row]) -> dict[str, Any]:
        """See `tag_metrics`."""
        return tag_metrics([self.read_tags(row) for row in rows], predictions)

    def concerns_about_rows(self, train: Sequence[Row]) -> list[str]:
        """Return a sentence if no training word has some of the tags."""
        seen = {tag for row in train for tag in self.read_tags(row)}
        return unseen_labels(self.tags, seen, unit="word", kind="tag")

    def concerns_about(
        self, metrics: Mapping[str, Any], part: str = "", *, trained: bool = False
    ) -> list[str]:
        """See `class_concerns`."""
        return class_concerns(metrics, part, trained=trained, unit="word", kind="tag")

    def render(self, row: Row, *, answer: bool = True) -> str:
        """Return the row as text, with literals exactly as written, then its tags on a line of their own."""
        text = Template.parse(self.template).fill(self.values(row))
        return f"{text}\n{' '.join(self.read_tags(row))}" if answer else text

    def values(self, row: Row) -> dict[str, str]:
        """Return the text of the template's fields by their names."""
        others = [name for name in self.fields if name != WORDS]
        return {
            WORDS: " ".join(self.read_words(row)),
            **read_fields(row, others, self.columns, [WORDS, self.tag_column]),
        }


@dataclasses.dataclass(frozen=True)
class TokenClassificationEncoder(TaskEncoder):
    """A `TokenClassification` bound to a tokenizer; see `TaskEncoder`."""

    task: TokenClassification
    setting: TextSetting
    template: BoundTemplate

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """Return the tokens of a row, which are read at the first token of each word; `answer` holds the numbers of the tags.

        Raises ValueError for a missing column or value, an unknown tag, and a row too long to be cut.
        """
        words = self.task.read_words(row)
        aligned = align(self.template, self.task.values(row), WORDS, self.setting.max_tokens)
        starts = [0, *accumulate(len(word) + 1 for word in words)]  # a word, a space
        found: dict[int, int] = {}  # word -> its first token
        number = 0
        for position, (first, behind) in zip(aligned.positions, aligned.spans, strict=True):
            while number < len(words) and starts[number] + len(words[number]) <= first:
                number += 1
            if number < len(words) and behind > starts[number]:  # not only the space in front of it
                found.setdefault(number, position)
        tags = self.task.read_tags(row) if answer else []
        return EncodedRow(
            aligned.context,
            read=tuple(found.values()),
            answer=tuple(self.task.tags.index(tags[word]) for word in found) if answer else (),
            origin=(len(words), tuple(found)),
        )

    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        """Return the mean cross-entropy over the words of each row, (B,), in nats, 0 for a row without words.

        answers: (W of all rows, K)

        Raises ValueError for a row without its tags.
        """
        check_answered(rows)
        right = torch.tensor([int(tag) for row in rows for tag in row.answer], device=answers.device).long()
        losses = functional.cross_entropy(answers, right, reduction="none")[:, None]
        return torch.stack([part.sum() / max(1, len(part)) for part in split_outputs(losses, rows)])

    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[list[str]]:
        """Return a tag for each word of each row, in order. Words that were cut off are "O" (without one, the first tag)."""
        outside = OUTSIDE if OUTSIDE in self.task.tags else self.task.tags[0]

        def read(row: EncodedRow, logits: Tensor) -> list[str]:
            count, words = row.origin
            tags = [outside] * count
            for word, tag in zip(words, logits.argmax(dim=-1).tolist(), strict=True):  # (W, K) -> (W,)
                tags[word] = self.task.tags[tag]
            return tags

        return read_outputs(model, rows, batch_size, on_batch, read)
