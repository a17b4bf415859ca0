"""Answers that are texts: how they are generated or chosen, and what the loss of the right one is. B rows, K choices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.data import by_length
from softprompt.later import LATER
from softprompt.outputs import EncodedRow, TargetLogits, windows_of
from softprompt.surroundings import own_generators
from softprompt.tasks.base import Scorer
from softprompt.tasks.columns import guess
from softprompt.tasks.reading import in_batches

Generation = Annotated[Mapping[str, Any], LATER]
"""Options of transformers' `generate` by name, and `seed`."""
Choices = Annotated[tuple[str, ...], LATER]
"""The texts that an answer is one of; empty: any text."""

_WITH_SAMPLING = (
    "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "seed",
)  # fmt: skip
_ELSEWHERE = {
    "max_new_tokens": "it is a setting of the task itself",
    "max_length": "give max_new_tokens, which does not count what is read",
    "num_return_sequences": "each row gets one answer",
    "eos_token_id": "the task says what ends an answer",
    "stop_strings": "the task says what ends an answer",
    "pad_token_id": "the tokenizer says it",
    "bos_token_id": "the tokenizer says it",
    "use_cache": "the prompt's keys and values are always cached",
    "return_dict_in_generate": "the answers are texts",
    "output_scores": "the answers are texts",
    "output_logits": "the answers are texts",
    "output_attentions": "the answers are texts",
    "output_hidden_states": "the answers are texts",
}


def check_generation(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an option that `generate` does not take, that is set elsewhere, or that has no effect."""
    if not options:
        return
    from transformers import GenerationConfig

    known = sorted({name for name in vars(GenerationConfig()) if not name.startswith("_")} - {*_ELSEWHERE})
    for name in options:
        if name in _ELSEWHERE:
            raise ValueError(f"generation has {name!r}: {_ELSEWHERE[name]}")
        if name != "seed" and name not in known:
            near = guess(name, [*known, "seed"])
            raise ValueError(
                f"generation has {name!r}, which generate() does not take{near if len(near) < 100 else ''}"
            )
    if not options.get("do_sample") and (idle := [name for name in _WITH_SAMPLING if name in options]):
        raise ValueError(
            f"generation has {idle}, and without do_sample nothing is drawn: add do_sample: true, or leave them out"
        )
    seed = options.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ValueError(f"the seed of generation is {seed!r}, expected a whole number from 0 on")
    try:
        GenerationConfig(**{name: value for name, value in options.items() if name != "seed"})
    except (ValueError, TypeError) as error:
        raise ValueError(f"generation is {dict(options)}, which generate() refuses: {error}") from error


def check_choices(choices: Sequence[str], generation: Mapping[str, Any]) -> None:
    """Raise ValueError for choices that are empty, padded with spaces or repeated, and for options that they leave idle."""
    for choice in choices:
        if not choice or choice != choice.strip():
            raise ValueError(
                f"choices has {choice!r}, expected texts without spaces around them: a space in front of every answer belongs"
                " in the target"
            )
    if len(set(choices)) < len(choices):
        raise ValueError(f"choices {list(choices)} repeat: name each once")
    if choices and generation:
        raise ValueError(
            f"with choices every one is scored and nothing is generated: leave out generation={dict(generation)}"
        )


def answering(task: Any, generation: Mapping[str, Any] | None, choices: Sequence[str] | None) -> Any:
    """A task that writes texts, with options of one call put over its own. Raises ValueError as its settings do."""
    changes: dict[str, Any] = {}
    if generation is not None:
        merged = {**task.generation, **generation}
        if "max_new_tokens" in merged:
            changes["max_new_tokens"] = merged.pop("max_new_tokens")
        changes |= {"generation": merged, "choices": ()}
    if choices is not None:
        if not choices or isinstance(choices, str):
            raise ValueError(f"choices is {choices!r}, expected a list of texts")
        changes |= {"choices": tuple(choices)} | ({} if generation else {"generation": {}})
    return dataclasses.replace(task, **changes)


@dataclass(frozen=True)
class Writer:
    """How answers are written.

    tokenizer       of the backbone
    max_new_tokens  length of the longest generated answer, end mark included
    stops           tokens that end an answer
    end_text        text that ends an answer; None: a token does
    generation      options of `generate`, and `seed`
    choices         the texts that an answer is one of. `origin` of each row holds their tokens, end marks included,
                    and so do `targets` of a row without its answer
    """

    tokenizer: PreTrainedTokenizerBase
    max_new_tokens: int
    stops: Sequence[int]
    end_text: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    choices: Sequence[str] = ()

    @torch.no_grad()
    def predict(
        self,
        model: Scorer,
        rows: Sequence[EncodedRow],
        *,
        batch_size: int = 16,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[str]:
        """The answer of each row, in order: generated up to the end mark and stripped, or the most probable choice.

        `on_batch` is called with the number of rows done so far.
        """
        options = {name: value for name, value in self.generation.items() if name != "seed"}
        options = {"do_sample": False, **options, "max_new_tokens": self.max_new_tokens}

        def answers(batch: Sequence[int]) -> list[str]:
            mine = [rows[i] for i in batch]
            if self.choices:
                return self._chosen(model, mine)
            written = model.generate(mine, **options, eos_token_id=list(self.stops) or None)
            return [self._read(ids) for ids in written]

        with self._seeded():
            return in_batches([len(row.context) for row in rows], batch_size, on_batch, answers)

    def _chosen(self, model: Scorer, rows: Sequence[EncodedRow]) -> list[str]:
        """The choice that the model gives the highest probability as a whole answer, with its end mark.

        The end mark makes a choice and a longer one that begins with it two answers, whose probabilities can be compared.
        """
        asked = [
            row if row.targets == row.origin else dataclasses.replace(row, targets=row.origin, gold=None)
            for row in rows
        ]
        scored = model.score(asked)
        sums = scored.log_likelihoods()[0].view(len(rows), len(self.choices))  # (B * K,) -> (B, K)
        return [self.choices[best] for best in sums.argmax(dim=1).tolist()]

    def _read(self, ids: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(ids) if token in self.stops), len(ids))
        text = str(self.tokenizer.decode(list(ids[:end]), skip_special_tokens=True))
        if self.end_text is not None:
            text = text.split(self.end_text, 1)[0]
        return text.strip()

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        seed = self.generation.get("seed")
        if seed is None:
            yield
            return
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with own_generators([torch.device("cuda", number) for number in devices]):
            torch.manual_seed(seed)
            yield


def check_distinct(choices: Sequence[str], targets: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The tokens of choices. Raises ValueError for two choices that the tokenizer reads alike."""
    for number, target in enumerate(targets):
        if target in targets[:number]:
            raise ValueError(
                f"the tokenizer reads the choices {choices[targets.index(target)]!r} and {choices[number]!r} alike"
            )
    return tuple(targets)


def reference_likelihoods(logits: TargetLogits) -> tuple[Tensor, Tensor]:
    """log p of each row's reference, and its length in tokens, (B,). Raises ValueError for a row without its reference."""
    if any(count != 1 for count in logits.counts):
        raise ValueError(
            f"rows have {set(logits.counts)} targets, expected the reference: encode with its answer"
        )
    return logits.log_likelihoods()


@torch.no_grad()
def perplexity(
    model: Scorer,
    rows: Sequence[EncodedRow],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
) -> float:
    """exp of the mean of -log p over all tokens of all references, end marks included.

    Long references weigh more than short ones here, unlike in the loss. `on_batch` is called as in `predict`.
    Raises ValueError if there are no rows, or one of them has no reference.
    """
    if not rows:
        raise ValueError("no rows to take the perplexity of")
    rows = [part for row in rows for part in windows_of(row)]
    total, tokens, done = 0.0, 0, 0
    for batch in by_length([len(row.context) + sum(map(len, row.targets)) for row in rows], batch_size):
        sums, lengths = reference_likelihoods(model.score([rows[i] for i in batch]))
        total, tokens, done = total - float(sums.sum()), tokens + int(lengths.sum()), done + len(batch)
        if on_batch is not None:
            on_batch(done)
    return math.exp(total / tokens)
