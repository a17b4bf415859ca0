"""DPT, decomposed prompt tuning: a prompt of low rank. Xiao et al., Findings of EMNLP 2023 (arXiv 2310.10094).

P_s = A B,   A (P, r), B (r, d), both trained: P r + r d numbers instead of P d
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.prompt_tuning import VirtualTokens, baked


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LowRankPromptTuning(Method):
    """Virtual tokens as the product of two thin matrices, multiplied out when training is over.

    Both start uniform, as in the paper, but as wide as makes the product's standard deviation the embedding table's.
    """

    length: int = Field(default=20, gt=0)
    """P, virtual tokens."""
    rank: int = Field(default=10, gt=0)
    """r, the rank of the prompt."""

    name = "low-rank-prompt-tuning"

    def build(self, context: BuildContext) -> PromptModule:
        bound = math.sqrt(3) * self._factor_std(context.spec)

        def factor(*shape: int) -> Tensor:
            return torch.empty(shape).uniform_(-bound, bound, generator=context.generator)

        return LowRankTokens(factor(self.length, self.rank), factor(self.rank, context.spec.width))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return VirtualTokens(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """A twentieth of a factor's standard deviation: with both moving, a tenth of the product's, as in Prompt Tuning."""
        return 0.05 * self._factor_std(spec)

    def _factor_std(self, spec: BackboneSpec) -> float:
        """r products of two numbers with this standard deviation sum to the table's."""
        return math.sqrt(spec.embedding_std) * float(self.rank) ** -0.25


class LowRankTokens(PromptModule):
    """left (P, r) and right (r, d), float32."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        super().__init__()
        self.left = nn.Parameter(left)
        self.right = nn.Parameter(right)
        self.length = len(left)

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=(self.left @ self.right)[None])  # (P, r) x (r, d) -> (1, P, d)

    def bake(self) -> PromptModule:
        return baked(self)
