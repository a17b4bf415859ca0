"""Language modeling: the objectives of language models on raw text as ordinary tasks, usually with FullTuning.

Lester et al. 2021 (arXiv 2104.08691, section 3.2) adapt T5 in this way before they tune prompts on it, because a model that
has only learned to fill gaps begins every answer with a sentinel. Their other remedy, downstream answers that begin with a
sentinel too, needs no task of its own: write the sentinel into the answer, as in target="<extra_id_0> {answer}".
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
from softprompt.tasks.bound_template import BoundTemplate, Run, bind_template
from softprompt.tasks.columns import check_columns, read_fields
from softprompt.tasks.reading import in_batches
from softprompt.tasks.template import Template


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class LanguageModeling(Task):
    """The answer to the beginning of a text is its rest; the answer to a text with gaps is the missing spans.

    A prediction is the log-likelihood of what the model had to write, in nats per token, as in the metric.
    """

    name: ClassVar[str] = "language-modeling"
    main_metric: ClassVar[str] = "log_likelihood"

    objective: Literal["prefix-lm", "span-corruption"] = "prefix-lm"
    """prefix-lm: a text is split at a random position. span-corruption: spans are cut out, as in T5's pretraining."""
    length: int = Field(default=128, ge=2)
    """The number of tokens of each text that are used, from its beginning."""
    density: float = Field(default=0.15, gt=0, lt=1)
    """The share of the tokens that span corruption cuts out."""
    span: float = Field(default=3.0, ge=1)
    """The mean length of a span in tokens."""
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """{"text": column of the data}, where it is called otherwise."""
    seed: int = 0
    """Seed of the positions where texts are split or cut; the same text with the same seed is always cut in the same way."""

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
        return LanguageModelingEncoder(
            self, setting, bind_template(Template.parse("{text}"), setting), sentinels
        )

    def evaluate(self, predictions: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
        """Return the mean of the predictions."""
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
        """Split the text of a row into what is given and what is to be written. `answer` changes nothing.

        Raises ValueError for a text of fewer than two tokens, and if max_tokens leaves no room for two.
        """
        text = self.task.render(row)
        ids = self.setting.ids(text)[: self._room()]
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
        """Return how many tokens of a text fit with the end mark and, in a decoder, at worst one sentinel for every two."""
        if self.setting.max_tokens is None:
            return self.task.length
        around = sum(len(piece) for piece in self.template.pieces if not isinstance(piece, Run))
        room = self.setting.max_tokens - around - (0 if self.setting.closed else 1)
        if self.sentinels and not self.setting.closed:
            room = room // 2
        return max(0, min(self.task.length, room))

    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        """Return -log p of what is to be written, the mean over its tokens, (B,), in nats per token."""
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
        """Return log p of what is to be written for each row, in order, in nats per token."""

        def answers(batch: Sequence[int]) -> list[float]:
            mine = [rows[i] for i in batch]
            found: list[float] = (-self.loss(model.score(mine), mine)).tolist()
            return found

        lengths = [len(row.context) + len(row.targets[0]) for row in rows]
        return in_batches(lengths, batch_size, on_batch, answers)

    def likelihood_metrics(
        self, model: Scorer, rows: Sequence[EncodedRow], *, batch_size: int = 16
    ) -> dict[str, float]:
        """Return the perplexity over all tokens of all rows."""
        lengths = [len(row.targets[0]) for row in rows]
        means = self.predict(model, rows, batch_size=batch_size)
        total = sum(mean * length for mean, length in zip(means, lengths, strict=True))
        return {"perplexity": math.exp(-total / sum(lengths))}


def corrupt(
    ids: Sequence[int], sentinels: Sequence[int], density: float, span: float, chance: random.Random
) -> tuple[list[int], list[int]]:
    """Return what is given and what is to be written in T5's span corruption (Raffel et al. 2020, section 3.1.4).

    A sentinel of its own replaces each span that is cut out. To be written is each span after its sentinel, and at the end
    one more sentinel if the tokenizer has it. The text begins with a part that stays, and no two spans touch.

    Arguments:
        ids: two or more token ids
        sentinels: the ids of the sentinels, in order
        density: the share of the tokens that are cut out
        span: the mean length of a span in tokens
        chance: the source of randomness
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
    """Return a random composition of `total` into `count` positive parts."""
    ends = [0, *sorted(chance.sample(range(1, total), count - 1)), total]
    return [end - start for start, end in itertools.pairwise(ends)]
