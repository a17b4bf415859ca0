"""Residual Prompt Tuning passes virtual tokens through a residual MLP. Razdaibiedina et al., ACL 2023 (arXiv 2305.03937).

P' = P + LN(W_up ReLU(W_down P)),   P (P, d), W_down (d, h), W_up (h, d)                         (section 3)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts import initialization as initial
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.prompt_tuning import VirtualTokens, baked


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ResidualPromptTuning(Method):
    """Virtual tokens pass through a residual MLP, which is dropped after training.

    The initial gain of the layer norm is zero, so that training begins as in Prompt Tuning. With the authors' gain of one,
    each number of the prompt would jump by 1, many times the scale of most embedding tables.
    """

    length: int = Field(default=10, gt=0)
    """P, the number of virtual tokens."""
    bottleneck: int = Field(default=800, gt=0)
    """h, the width of the MLP."""
    shared: bool = True
    """Whether one MLP serves all virtual tokens; False: each has its own."""
    init: initial.Init = "auto"
    """The initial values of the virtual tokens; see Prompt Tuning."""
    init_text: str | None = None
    """The text of init="text"; its tokens are repeated or cut to `length`."""
    init_prompt: Path | None = None
    """The folder of a saved prompt (ours or PEFT's) for init="prompt"."""

    name = "residual-prompt-tuning"

    @model_validator(mode="after")
    def _text_and_prompt_go_with_their_init(self) -> ResidualPromptTuning:
        initial.check_start(self.init, self.init_text, self.init_prompt)
        return self

    def build(self, context: BuildContext) -> PromptModule:
        tokens = initial.start(context, self.length, self.init, self.init_text, self.init_prompt)
        width, mlps = context.spec.width, 1 if self.shared else self.length
        down, up = torch.empty(mlps, width, self.bottleneck), torch.empty(mlps, self.bottleneck, width)
        for matrices in (down, up):
            bound = 1 / math.sqrt(matrices.shape[1])  # as in torch's linear layers
            nn.init.uniform_(matrices, -bound, bound, generator=context.generator)
        return ResidualTokens(tokens, down, up, context.spec.embedding_std)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return VirtualTokens(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of tokens, gain and bias: a tenth of the table's standard deviation, as in Prompt Tuning."""
        return 0.1 * spec.embedding_std

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        assert isinstance(module, ResidualTokens)
        # 0.4 / d by default: the scale of the matrices does not depend on that of the table.
        matrices = lr * 4 / (module.tokens.shape[1] * module.table_std)
        return [
            {"params": [module.tokens, module.gain, module.bias], "lr": lr},
            {"params": [module.down, module.up], "lr": matrices},
        ]


class ResidualTokens(PromptModule):
    """tokens (P, d), down (1 or P, d, h), up (1 or P, h, d), gain and bias (d,) of the layer norm, float32."""

    def __init__(self, tokens: Tensor, down: Tensor, up: Tensor, table_std: float) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.gain = nn.Parameter(torch.zeros(tokens.shape[1]))
        self.bias = nn.Parameter(torch.zeros(tokens.shape[1]))
        self.length = len(tokens)
        self.table_std = table_std

    def forward(self) -> PromptOutput:
        rows = self.tokens[:, None]  # (P, 1, d)
        hidden = (F.relu(rows @ self.down) @ self.up)[:, 0]  # (P, 1, d) -> (P, d)
        # The usual eps of 1e-5 is as large as the variance here, where the table's standard deviation is 0.02.
        change = F.layer_norm(hidden, hidden.shape[1:], self.gain, self.bias, eps=1e-12)
        return PromptOutput(tokens=(self.tokens + change)[None])

    def bake(self) -> PromptModule:
        return baked(self)
