"""Gradient-guided search for trigger tokens; AutoPrompt and GCG are two of its settings.

Shin et al., AutoPrompt, EMNLP 2020 (arXiv 2010.15980), section 2.2; Zou et al., GCG, 2023 (arXiv 2307.15043),
algorithm 1. The prompt is P words in the soft slots of the template. A step estimates by (e_w - e_i)^T grad (AutoPrompt,
equation 2) how the loss would change with word w in place of word i, and tries the most promising exchanges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule, unread
from softprompt.search import (
    SearchProblem,
    SearchResult,
    Step,
    Vocabulary,
    candidate_losses,
    draw_words,
    linearised_changes,
    prompt_gradient,
    search,
    searchable_words,
    survival_check,
)
from softprompt.search.words import Survives

WORDS = 5  # the length of a prompt if neither a length nor a text is given
_LOOKED_AT = 20  # ranks that are tried for each surviving candidate; rarely are more than a few needed


class FoundWords(PromptModule):
    """P words of the vocabulary in place of virtual tokens: ids (P,) and their embeddings (P, d). Nothing is trained."""

    ids: Tensor
    tokens: Tensor

    def __init__(self, ids: Tensor, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", ids)
        self.register_buffer("tokens", tokens)
        self.length = len(ids)

    def show(self, ids: Tensor, spec: BackboneSpec) -> None:
        """Replace the words by the same number of other words."""
        self.ids.copy_(ids)
        self.tokens.copy_(spec.embed(ids))

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=self.tokens[None])  # (P, d) -> (1, P, d)


class Searched(Method):
    """A method that searches for words."""

    length: int | None
    init_text: str | None
    ascii_only: bool
    label_words: bool

    def build(self, context: BuildContext) -> PromptModule:
        spec = context.spec
        length = self.length or WORDS
        if self.init_text is not None:
            length = len(spec.tokenize(self.init_text))
            if self.length is not None and length != self.length:
                raise ValueError(
                    f"init_text {self.init_text!r} has {length} tokens and length is {self.length}: leave length out"
                )
        ids = torch.zeros(length, dtype=torch.long)
        return FoundWords(ids, spec.embed(ids))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return FoundWords(tensors["ids"], tensors["tokens"])

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return unread(spec)

    def head(self, width: int, outputs: int, generator: torch.Generator) -> nn.Module:
        raise ValueError(
            f"{self.name} trains nothing, and this task is answered by a head that must be trained: take a task that is "
            "answered by words"
        )

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        return []

    def begin(self, problem: SearchProblem) -> tuple[Tensor, Vocabulary, Survives]:
        """Return the initial words, the words that may be used, and the check that prompts must pass."""
        backbone = problem.backbone
        without = (
            [] if self.label_words else [w for words in problem.task.label_words.values() for w in words]
        )
        words = searchable_words(backbone, ascii_only=self.ascii_only, without=without)
        survives = survival_check(
            problem.task, backbone.tokenizer, problem.bind, problem.encoder, problem.data
        )
        if self.init_text is not None:
            ids = backbone.spec.tokenize(self.init_text)
            if not survives(ids):
                raise ValueError(
                    f"init_text {self.init_text!r}, written into the template, is not read as the same tokens: separate the "
                    "slot from its neighbours, as in '{soft}\\n{text}', or end the text with a line break"
                )
            return torch.tensor(ids), words, survives
        generator = torch.Generator().manual_seed(problem.recipe.seed)
        return draw_words(words, self.length or WORDS, survives, generator), words, survives


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TriggerSearch(Searched):
    """A search that exchanges one word at a time. The defaults are those of AutoPrompt, on fewer rows.

    GCG is TriggerSearch(positions="all", top_k=256, candidates=512, accept="best").
    """

    length: int | None = Field(default=None, gt=0)
    """P, the number of words; None: the number of tokens of init_text, or 5 without one."""
    init_text: str | None = Field(default=None, min_length=1)
    """The initial words; None: they are drawn from the vocabulary by the seed of the run."""
    positions: Literal["one", "all"] = "one"
    """Where a step exchanges a word: at one random position (AutoPrompt), or anywhere (GCG)."""
    top_k: int = Field(default=10, gt=0)
    """The number of words with the best estimates that are considered for a position."""
    candidates: int | None = Field(default=None, gt=0)
    """The number of prompts that a step tries, drawn from these words; None: all of them."""
    accept: Literal["better", "best"] = "better"
    """better: take the best candidate only if it is better than the prompt itself (AutoPrompt). best: always (GCG)."""
    batches: int = Field(default=1, gt=0)
    """The number of batches over which the gradient is averaged, and of other batches on which candidates are compared."""
    candidates_per_pass: int = Field(default=8, gt=0)
    """The number of candidates scored in one pass. It bounds the memory and changes nothing else."""
    ascii_only: bool = True
    """Whether only words of printable ASCII are used."""
    label_words: bool = False
    """Whether the prompt may use the words that stand for the labels."""

    name = "trigger-search"

    @model_validator(mode="after")
    def _candidates_are_drawn_among_enough(self) -> TriggerSearch:
        if self.positions == "one" and self.candidates is not None and self.candidates > self.top_k:
            raise ValueError(
                f"candidates is {self.candidates} and top_k is {self.top_k}: one position has no more candidates than "
                'top_k; raise top_k, or take positions="all"'
            )
        return self

    def search(self, problem: SearchProblem, module: PromptModule) -> SearchResult:
        assert isinstance(module, FoundWords)
        spec = problem.backbone.spec
        start, words, survives = self.begin(problem)

        def step(number: int, ids: Tensor, generator: torch.Generator) -> Step:
            return self.step(problem, words, survives, number, ids, generator)

        return search(problem, start, step, lambda ids: module.show(ids, spec))

    def step(
        self,
        problem: SearchProblem,
        words: Vocabulary,
        survives: Survives,
        number: int,
        ids: Tensor,
        generator: torch.Generator,
    ) -> Step:
        """Exchange one word or none.

        Arguments:
            problem: the task, the backbone, the rows and the recipe
            words: the words that may be used
            survives: the check that prompts must pass
            number: the number of the step, from 0
            ids: (P,) the words before the step
            generator: seeded for this step
        """
        backbone, encoder = problem.backbone, problem.encoder
        seen = problem.batch(2 * self.batches * number, self.batches)
        fresh = problem.batch((2 * number + 1) * self.batches, self.batches)
        loss, gradient = prompt_gradient(
            backbone, encoder, seen, ids, accumulation=problem.recipe.accumulation
        )
        changes = linearised_changes(gradient, ids, words)
        proposals = self._propose(ids, changes, words, survives, generator)
        norm = gradient.norm().item()
        tokens = sum(len(row.context) for row in seen)
        if not proposals:
            return Step(ids, loss, norm, tokens)
        candidates = torch.stack([ids, *proposals])  # (1 + C, P)
        losses = candidate_losses(backbone, encoder, fresh, candidates, per_pass=self.candidates_per_pass)
        best = 1 + int(losses[1:].argmin())
        taken = best if self.accept == "best" or losses[best] < losses[0] else 0
        tokens += len(candidates) * sum(len(row.context) for row in fresh)
        return Step(candidates[taken], losses[taken].item(), norm, tokens)

    def _propose(
        self,
        ids: Tensor,
        changes: Tensor,
        words: Vocabulary,
        survives: Survives,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Return surviving prompts with one word exchanged, each once. changes: (P, A), see `linearised_changes`."""
        places = list(range(len(ids)))
        if self.positions == "one":
            places = [int(torch.randint(len(ids), (1,), generator=generator))]
        if self.candidates is None:
            return [found for place in places for found in self._ranked(ids, place, changes, words, survives)]
        top = changes[places].topk(min(self.top_k, len(words.ids)), largest=False).indices  # (n, k)
        found: list[Tensor] = []
        for cell in torch.randperm(top.numel(), generator=generator).tolist():
            place, rank = divmod(cell, top.shape[1])
            changed = _exchanged(ids, places[place], words.ids[top[place, rank]])
            if not torch.equal(changed, ids) and survives(changed.tolist()):
                found.append(changed)
            if len(found) == self.candidates:
                break
        return found

    def _ranked(
        self, ids: Tensor, place: int, changes: Tensor, words: Vocabulary, survives: Survives
    ) -> list[Tensor]:
        """Return the first top_k survivors at one position."""

        def survivors() -> Iterator[Tensor]:
            limit = min(self.top_k * _LOOKED_AT, len(words.ids))
            for word in changes[place].topk(limit, largest=False).indices.tolist():
                changed = _exchanged(ids, place, words.ids[word])
                if not torch.equal(changed, ids) and survives(changed.tolist()):
                    yield changed

        return [changed for _, changed in zip(range(self.top_k), survivors(), strict=False)]


def _exchanged(ids: Tensor, place: int, word: Tensor) -> Tensor:
    changed = ids.clone()
    changed[place] = word
    return changed
