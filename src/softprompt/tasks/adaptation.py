"""Training on raw text: a language model's own objectives as ordinary tasks, usually with FullTuning.

Lester et al. 2021 (arXiv 2104.08691, section 3.2) adapt T5 so before they tune prompts on it: a model that has only learned to
fill gaps begins every answer with a sentinel. Their other remedy, to let downstream answers begin with one too, needs
no task of its own: write it into the answer, as in target="<extra_id_0> {answer}".
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import random
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.data import Row
from softprompt.outputs import EncodedRow, TargetLogits
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.columns import check_columns, read_fields
from softprompt.tasks.reading import in_batches
from softprompt.tasks.template import BoundTemplate, Run, Template, tokenize


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class LanguageModeling(Task):
    """The rest of a text for its beginning, or its missing spans for what is left of it.

    Predictions are log-likelihoods: nats per token of what the model had to write, as in the metric.
    """

    name: ClassVar[str] = "language-modeling"
    main_metric: ClassVar[str] = "log_likelihood"

    objective: Literal["prefix-lm", "span-corruption"] = "prefix-lm"
    """prefix-lm: a text is split at a random place. span-corruption: spans are cut out, as in T5's pretraining."""
    length: int = Field(default=128, ge=2)
    """Tokens of each text that are used, from its beginning."""
    density: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that span corruption cuts out."""
    span: float = Field(default=3.0, ge=1)
    """Mean length of these spans in tokens."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{"text": column of the data}, where it is called otherwise."""
    seed: int = 0
    """Of the places where texts are split or cut: the same text with the same seed always alike."""

    def __post_init__(self) -> None:
        check_columns(self.columns, ["text"])

    @property
    def fields(self) -> tuple[str, ...]:
        """The text."""
        return ("text",)

    def bind(self, setting: TextSetting) -> LanguageModelingEncoder:
        """Raises ValueError for a model that writes nothing, a tokenizer without EOS, and, where spans are cut out,
        one without sentinels (`<extra_id_0>`, `<extra_id_1>` ...)."""
        tokenizer = setting.tokenizer
        if setting.family in ("masked-lm", "text-encoder"):
            raise ValueError(f"a {setting.family} writes no text: language modeling needs a decoder")
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token, which ends what the model writes")
        sentinels: tuple[int, ...] = ()
        if self.objective == "span-corruption":
            known = tokenizer.get_vocab()
            while (token := f"<extra_id_{len(sentinels)}>") in known:
                sentinels += (known[token],)
            if not sentinels:
                raise ValueError(
                    'the tokenizer has no sentinel <extra_id_0>, which stands for a span: use objective="prefix-lm"'
                )
        return LanguageModelingEncoder(self, setting, Template.parse("{text}").bind(setting), sentinels)

    def evaluate(self, predictions: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
        """Their mean over rows."""
        return {"log_likelihood": sum(predictions) / len(predictions)}

    def render(self, row: Row, *, answer: bool = True) -> str:
        """The text."""
        return read_fields(row, self.fields, self.columns)["text"]


@dataclasses.dataclass(frozen=True)
class LanguageModelingEncoder(TaskEncoder):
    """A `LanguageModeling` bound to a tokenizer; see `TaskEncoder`."""

    task: LanguageModeling
    setting: TextSetting
    template: BoundTemplate
    sentinels: tuple[int, ...]

    def encode(self, row: Row, *, answer: bool = True) -> EncodedRow:
        """The row's text in two: what is given, and what is to be written. `answer` changes nothing.

        Raises ValueError for a text of less than two tokens, and where max_tokens leaves no room for two.
        """
        text = self.task.render(row)
        ids = tokenize(self.setting.tokenizer, text)[: self._room()]
        if len(ids) < 2:
            raise ValueError(
                f"the text {reprlib.repr(text)} has {len(ids)} tokens within max_tokens={self.setting.max_tokens}: "
                "two are needed, one to be given and one to be written; drop such rows"
            )
        seed = hashlib.sha256(f"{self.task.seed} {text}".encode()).digest()
        chance = random.Random(seed)
        if self.task.objective == "prefix-lm":
            place = chance.randrange(1, len(ids))
            given, written = ids[:place], ids[place:]
        else:
            given, written = corrupt(ids, self.sentinels, self.task.density, self.task.span, chance)
        context: list[int] = []
        for piece in self.template.pieces:
            context += given if isinstance(piece, Run) else piece
        return EncodedRow(tuple(context), ((*written, self.setting.tokenizer.eos_token_id),), 0)

    def _room(self) -> int:
        """Tokens of a text that fit, with the end mark and, in a decoder, one sentinel for each two of them at worst."""
        if self.setting.max_tokens is None:
            return self.task.length
        around = sum(len(piece) for piece in self.template.pieces if not isinstance(piece, Run))
        room = self.setting.max_tokens - around - (0 if self.setting.closed else 1)
        if self.sentinels and not self.setting.closed:
            room = room // 2
        return max(0, min(self.task.length, room))

    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        """-log p of what is to be written, mean over its tokens, (B,), nats per token."""
        sums, lengths = logits.log_likelihoods()
        return -sums / lengths

    @torch.no_grad()
    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[float]:
        """log p of what is to be written, nats per token, of each row, in order."""

        def answers(batch: Sequence[int]) -> list[float]:
            mine = [rows[i] for i in batch]
            found: list[float] = (-self.loss(model.score(mine), mine)).tolist()
            return found

        lengths = [len(row.context) + len(row.targets[0]) for row in rows]
        return in_batches(lengths, batch_size, on_batch, answers)

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Perplexity, over all tokens of all rows."""
        lengths = [len(row.targets[0]) for row in rows]
        means = self.predict(model, rows, batch_size=batch_size)
        total = sum(mean * length for mean, length in zip(means, lengths, strict=True))
        return {"perplexity": math.exp(-total / sum(lengths))}


def corrupt(
    ids: Sequence[int], sentinels: Sequence[int], density: float, span: float, chance: random.Random
) -> tuple[list[int], list[int]]:
    """T5's span corruption (Raffel et al. 2020, arXiv 1910.10683, section 3.1.4): what is given, what is to be written.

    Each span that is cut out leaves a sentinel of its own; what is written are the spans behind their sentinels, and a
    last one if the tokenizer has it. ids: two or more. Kept text comes first, and no two spans touch.
    """
    cut = min(max(round(len(ids) * density), 1), len(ids) - 1)
    spans = max(1, min(round(cut / span), cut, len(ids) - cut, len(sentinels)))
    kept = _parts(len(ids) - cut, spans, chance)
    removed = _parts(cut, spans, chance)
    given: list[int] = []
    written: list[int] = []
    start = 0
    for sentinel, keep, drop in zip(sentinels, kept, removed, strict=False):
        given += [*ids[start : start + keep], sentinel]
        written += [sentinel, *ids[start + keep : start + keep + drop]]
        start += keep + drop
    return given, written + list(sentinels[spans : spans + 1])


def _parts(total: int, count: int, chance: random.Random) -> list[int]:
    """A random composition of `total` into `count` positive parts."""
    ends = [0, *sorted(chance.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in itertools.pairwise(ends)]
