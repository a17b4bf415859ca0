"""DPT, decomposed prompt tuning, trains a prompt of low rank. Xiao et al., Findings of EMNLP 2023 (arXiv 2310.10094).

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
    """Virtual tokens are the product of two thin matrices, which is computed once after training.

    The initial values of both are uniform, as in the paper; their width gives the product the standard deviation of the
    embedding table.
    """

    length: int = Field(default=20, gt=0)
    """P, the number of virtual tokens."""
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
        """Return a twentieth of a factor's standard deviation: both move, so the product moves by a tenth of its own."""
        return 0.05 * self._factor_std(spec)

    def _factor_std(self, spec: BackboneSpec) -> float:
        """Return the standard deviation of two numbers of which r products sum to that of the table."""
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
