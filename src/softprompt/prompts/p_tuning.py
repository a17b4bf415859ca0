"""P-tuning: a small encoder computes virtual tokens that may stand anywhere in the template.

Liu et al. 2021 (arXiv 2103.10385):

h = MLP(biLSTM(P_emb)),   P_emb (P, d), the bi-LSTM of two layers; or h = MLP(P_emb)                 (section 3.3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts import initialization as initial
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.prompt_tuning import VirtualTokens, baked


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PTuning(Method):
    """An LSTM or an MLP computes the virtual tokens and is dropped after training.

    The template says where the tokens stand: "{soft:3} {text} {soft:3} It was". A constant factor scales their initial
    values to the embedding table; the authors' code leaves them as the encoder gives them.
    """

    length: int = Field(default=20, gt=0)
    """P, the number of virtual tokens."""
    encoder: Literal["lstm", "mlp"] = "lstm"
    """What computes them: lstm, a bi-LSTM and an MLP; mlp, the MLP alone."""
    hidden: int | None = Field(default=None, gt=0)
    """Width of the encoder; for the LSTM both directions together. The default is the width of the backbone."""

    name = "p-tuning"

    @model_validator(mode="after")
    def _two_directions_share_the_width(self) -> PTuning:
        if self.encoder == "lstm" and self.hidden is not None and self.hidden % 2:
            raise ValueError(
                f'hidden is {self.hidden} and encoder is "lstm", whose two directions share it equally: give an even '
                'number, or encoder="mlp"'
            )
        return self

    def build(self, context: BuildContext) -> PromptModule:
        width = context.spec.width
        hidden = self.hidden or width + width % 2
        with initial.seeded(context.generator):
            module = PromptEncoder(self.length, width, hidden, lstm=self.encoder == "lstm")
        with torch.no_grad():
            module.scale.copy_(context.spec.embedding_std / module.encode().std())
        return module

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return VirtualTokens(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return 1.2 / hidden. At the 4096 of the paper's ALBERT this is 3e-4, where the authors use 1e-4 for longer runs.

        If all weights of the last layer move by lr, a virtual token moves by lr times the sum of its inputs, which are about
        0.23 each: a quarter of the table's standard deviation. Of 0.12, 0.4 and 1.2, the last was best on two models
        (docs/results/language-methods.md).
        """
        return 1.2 / (self.hidden or spec.width)


class PromptEncoder(PromptModule):
    """P embeddings (P, d), the layers that read them, and `scale`, a constant."""

    scale: Tensor

    def __init__(self, length: int, width: int, hidden: int, *, lstm: bool) -> None:
        super().__init__()
        self.length = length
        self.embedding = nn.Parameter(torch.randn(length, width))
        self.lstm = None
        if lstm:
            self.lstm = nn.LSTM(width, hidden // 2, num_layers=2, bidirectional=True)
        self.mlp = nn.Sequential(
            nn.Linear(hidden if lstm else width, hidden), nn.ReLU(), nn.Linear(hidden, width)
        )
        self.register_buffer("scale", torch.ones(()))

    def encode(self) -> Tensor:
        """Return the virtual tokens before they are scaled, (P, d)."""
        states = self.embedding
        if self.lstm is not None:
            states, _ = self.lstm(states)  # (P, d) -> (P, hidden)
        output: Tensor = self.mlp(states)
        return output

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=(self.scale * self.encode())[None])

    def bake(self) -> PromptModule:
        return baked(self)
