"""ADePT trains a short prompt, and a small network that shifts each word by its meaning. Tang et al., ICLR 2025.

input = [P_s ; E(x) + ReLU(E(x) A + a) B + b],   P_s (m, d), A (d, r), a (r,), B (r, d), b (d,)

The shift depends on the token and not on its position: it acts as an embedding table of its own, computed when it is needed.
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

# The paper uses 1e-4, and 0.3 for the prompt; all words of all rows share the network.
NETWORK_RATE = 0.01


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ADePT(Method):
    """A short prompt is trained together with an offset on the input embeddings: a two-layer network of each embedding.

    Generated words are shifted like those of the text. There is no dropout on the bottleneck, unlike in the authors' code,
    so that the network in training is the one in use.
    """

    length: int = Field(default=12, gt=0)
    """m, the number of virtual tokens. The paper uses 60 in a budget of 100."""
    budget: int = Field(default=20, gt=0)
    """l: at most as many numbers are trained as Prompt Tuning trains with l tokens."""
    rank: int | None = Field(default=None, gt=0)
    """r, the width of the network's hidden layer; the default is what the budget leaves."""
    init: initial.Init = "auto"
    """The initial values of the virtual tokens; see Prompt Tuning."""
    init_text: str | None = None
    """The text of init="text"; its tokens are repeated or cut to `length`."""
    init_prompt: Path | None = None
    """The folder of a saved prompt for init="prompt"."""
    network_learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the network; the default is a hundredth of the prompt's."""

    name = "adept"

    @model_validator(mode="after")
    def _text_and_prompt_go_with_their_init(self) -> ADePT:
        initial.check_start(self.init, self.init_text, self.init_prompt)
        return self

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.image is not None and spec.vision is None:
            return "its offsets are added to the embeddings of words, and this backbone reads images"
        return None

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError where the budget leaves nothing for the network."""
        tokens = initial.start(context, self.length, self.init, self.init_text, self.init_prompt)
        width = context.spec.width
        rank = self.rank or adept_rank(self.budget, width=width, length=self.length)
        down = torch.empty(width, rank)
        nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=context.generator)
        return ShortPromptWithNetwork(
            tokens, down, torch.zeros(rank), torch.zeros(rank, width), torch.zeros(width)
        )

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        names = ("tokens", "down", "down_bias", "up", "up_bias")
        return ShortPromptWithNetwork(*(tensors[name] for name in names))

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of the virtual tokens: a tenth of the table's standard deviation, as in Prompt Tuning."""
        return 0.1 * spec.embedding_std

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        assert isinstance(module, ShortPromptWithNetwork)
        network = [module.down, module.down_bias, module.up, module.up_bias]
        return [
            {"params": [module.tokens], "lr": lr},
            {"params": network, "lr": self.network_learning_rate or NETWORK_RATE * lr},
        ]


def adept_rank(budget: int, *, width: int, length: int) -> int:
    """Return the largest r with m d + 2 d r + r + d <= l d, so that the budget is not exceeded.

    Raises ValueError if no rank fits.
    """
    rank = (budget - length - 1) * width // (2 * width + 1)
    if rank < 1:
        raise ValueError(
            f"{length} virtual tokens and the network's bias leave no room for a rank in a budget of {budget} tokens: "
            f"give a budget of {length + 4} or more, or fewer virtual tokens"
        )
    return rank


class ShortPromptWithNetwork(PromptModule):
    """tokens (m, d), down (d, r), down_bias (r,), up (r, d), up_bias (d,), float32."""

    def __init__(self, tokens: Tensor, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())
        self.down = nn.Parameter(down.float())
        self.down_bias = nn.Parameter(down_bias.float())
        self.up = nn.Parameter(up.float())
        self.up_bias = nn.Parameter(up_bias.float())
        self.length = len(tokens)

    def token_offset(self, embeds: Tensor) -> Tensor:
        """Return what is added to the embeddings of words, (n, d) -> (n, d)."""
        hidden = F.relu(embeds.to(self.down.dtype) @ self.down + self.down_bias)  # (n, d) -> (n, r)
        return hidden @ self.up + self.up_bias

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=self.tokens[None], token_offset=(self.token_offset,))
