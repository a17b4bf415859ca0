"""PEZ: a continuous prompt that is trained through its nearest words. Wen et al. 2023 (arXiv 2302.03668), algorithm 1.

P' = Proj_E(P),  g = grad_P' L(P'),  P <- AdamW(P, g);  Proj_E: the word nearest by cosine, position by position.
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
    """Words found by gradient descent on a continuous prompt that the model only ever sees as words.

    The words are always ones that survive being written as text, which the original does not check.
    """

    length: int | None = Field(default=None, gt=0)
    """P, words of the prompt; none: as many as init_text has, else 5."""
    init_text: str | None = Field(default=None, min_length=1)
    """Words to start from; none: drawn from the vocabulary by the run's seed."""
    shrinkage: float = Field(default=0.01, ge=0, lt=1)
    """Share of the continuous prompt that the weight decay takes in a step at the peak learning rate: the paper's rate
    of 0.1 times its decay of 0.1, the same whatever the scale of the embedding table."""
    ascii_only: bool = True
    """Use words of printable ASCII only."""
    label_words: bool = False
    """Whether the prompt may use the words that stand for the labels."""

    name = "pez"

    def learning_rate(self, spec: BackboneSpec) -> float:
        """The embedding table's standard deviation: a step must be long enough to reach another word.

        The paper's 0.1 is for one table. AdamW's step does not depend on the gradient's scale, so a rate that follows
        the table's makes the same steps on all of them.
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
