"""ULPT, ultra-low-dimensional prompt tuning, projects few dimensions at random to the model's width. Wu, Hao, Mou, EACL 2026.

e_ij = (sum_k z_ik p_kj) s_j + b_j,   Z (P, r), s and b (d,) are trained; p (r, d) is drawn from N(0, 1) by a seed and frozen
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.prompt_tuning import VirtualTokens, baked


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ULPT(Method):
    """Virtual tokens of few dimensions are projected at random, then scaled and shifted: P r + 2 d numbers are trained.

    The paper does not give the initial values of Z, s and b. Here s = 1, b = 0, and Z gives the prompt the standard deviation
    of the embedding table. A saved prompt holds the product; `projection_seed` is one of its settings.
    """

    length: int = Field(default=20, gt=0)
    """P, the number of virtual tokens."""
    rank: int = Field(default=16, gt=0)
    """r, the dimensions of a token before it is projected. The paper uses 2 to 256."""
    projection_seed: int = Field(default=0, ge=0)
    """The seed of the frozen projection; it does not depend on the seed of the run."""

    name = "ulpt"

    def build(self, context: BuildContext) -> PromptModule:
        std = context.spec.embedding_std
        low = torch.randn(self.length, self.rank, generator=context.generator) * std / math.sqrt(self.rank)
        # Drawn on the CPU in float32, so that the seed means the same projection on every device.
        generator = torch.Generator().manual_seed(self.projection_seed)
        return ProjectedTokens(low, torch.randn(self.rank, context.spec.width, generator=generator), std)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return VirtualTokens(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of the shift: a tenth of the embedding table's standard deviation, as in Prompt Tuning."""
        return 0.1 * spec.embedding_std

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        assert isinstance(module, ProjectedTokens)
        # Each of the three moves a virtual token equally far: the paper's single rate suits neither a small table nor a
        # high rank.
        return [
            {"params": [module.low], "lr": lr / math.sqrt(module.low.shape[1])},
            {"params": [module.scale], "lr": lr / module.table_std},
            {"params": [module.shift], "lr": lr},
        ]


class ProjectedTokens(PromptModule):
    """low (P, r), scale and shift (d,), float32; projection (r, d) is a buffer that is drawn again from the seed."""

    projection: Tensor

    def __init__(self, low: Tensor, projection: Tensor, table_std: float) -> None:
        super().__init__()
        self.low = nn.Parameter(low)
        self.scale = nn.Parameter(torch.ones(projection.shape[1]))
        self.shift = nn.Parameter(torch.zeros(projection.shape[1]))
        self.register_buffer("projection", projection, persistent=False)
        self.length = len(low)
        self.table_std = table_std

    def forward(self) -> PromptOutput:
        tokens = (self.low @ self.projection) * self.scale + self.shift  # (P, r) x (r, d) -> (P, d)
        return PromptOutput(tokens=tokens[None])

    def bake(self) -> PromptModule:
        return baked(self)
