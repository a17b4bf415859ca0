"""PEZ trains a continuous prompt through its nearest words. Wen et al. 2023 (arXiv 2302.03668), algorithm 1.

P' = Proj_E(P),  g = grad_P' L(P'),  P <- AdamW(P, g);  Proj_E gives the word nearest by cosine at each position.
"""

from __future__ import annotations

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.backbones.base import BackboneSpec
from softprompt.prompts.base import PromptModule
from softprompt.prompts.trigger_search import FoundWords, Searched
from softprompt.search import SearchProblem, SearchResult, Step, nearest_surviving, prompt_gradient, search
from softprompt.training.recipe import lr_factor


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PEZ(Searched):
    """Gradient descent on a continuous prompt finds words; the model only ever sees the words.

    The words always survive being written as text and read again, which the original does not check.
    """

    length: int | None = Field(default=None, gt=0)
    """P, the number of words; None: the number of tokens of init_text, or 5 without one."""
    init_text: str | None = Field(default=None, min_length=1)
    """The initial words; None: they are drawn from the vocabulary by the seed of the run."""
    shrinkage: float = Field(default=0.01, ge=0, lt=1)
    """The share of the continuous prompt that weight decay removes in a step at the peak learning rate. It is the paper's
    rate of 0.1 times its decay of 0.1, and does not depend on the scale of the embedding table."""
    ascii_only: bool = True
    """Whether only words of printable ASCII are used."""
    label_words: bool = False
    """Whether the prompt may use the words that stand for the labels."""

    name = "pez"

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the standard deviation of the embedding table: a step must be long enough to reach another word.

        The paper's 0.1 suits one table. The step of AdamW does not depend on the scale of the gradient, so that a rate in
        proportion to the table makes equal steps on all tables.
        """
        return spec.embedding_std

    def search(self, problem: SearchProblem, module: PromptModule) -> SearchResult:
        assert isinstance(module, FoundWords)
        backbone, recipe = problem.backbone, problem.recipe
        start, words, survives = self.begin(problem)
        peak = recipe.learning_rate or self.learning_rate(backbone.spec)
        prompt = backbone.spec.embed(start).to(backbone.device).requires_grad_()  # (P, d)
        optimizer = torch.optim.AdamW(
            [prompt], lr=peak, betas=recipe.betas, weight_decay=self.shrinkage / peak
        )

        def step(number: int, ids: Tensor, generator: torch.Generator) -> Step:
            rows = problem.batch(number)
            loss, gradient = prompt_gradient(
                backbone, problem.encoder, rows, ids, accumulation=recipe.accumulation
            )
            rate = peak * lr_factor(recipe, number)
            optimizer.param_groups[0]["lr"] = rate
            prompt.grad = gradient
            optimizer.step()
            found = nearest_surviving(prompt, words, survives)
            tokens = sum(len(row.context) for row in rows)
            return Step(found, loss, gradient.norm().item(), tokens, rate)

        return search(problem, start, step, lambda ids: module.show(ids, backbone.spec))
