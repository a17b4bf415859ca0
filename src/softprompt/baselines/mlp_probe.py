"""An MLP probe trains a small network on the last hidden states of the frozen model, and nothing else."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import BackboneSpec
from softprompt.baselines._copies import NoPrompt
from softprompt.prompts.base import linear_head


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MLPProbe(NoPrompt):
    """The network is `layers` times linear, GELU and dropout, and a linear layer on top."""

    layers: int = Field(default=1, ge=1)
    """The number of hidden layers."""
    hidden: int = Field(default=256, ge=1)
    """The width of a hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout after each hidden layer, in training."""

    name = "mlp-probe"
    head_only: ClassVar[bool] = True

    def head(self, width: int, outputs: int, generator: torch.Generator) -> nn.Module:
        widths = [width] + [self.hidden] * self.layers
        hidden = [_he_layer(a, b, generator) for a, b in pairwise(widths)]
        return MLPHead(hidden, linear_head(self.hidden, outputs, generator), self.dropout)

    def head_learning_rate(self, spec: BackboneSpec) -> float:
        """Return three times the rate of a head that is trained with a prompt; docs/results/language-methods.md measures it."""
        return 3e-3

    def learning_rate(self, spec: BackboneSpec) -> float:
        return self.head_learning_rate(spec)


class MLPHead(nn.Module):
    """A head (n, width) -> (n, outputs). It uses dropout while gradients are recorded."""

    def __init__(self, hidden: list[nn.Linear], last: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(hidden)
        self.last = last
        self.dropout = dropout

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.hidden:
            states = functional.gelu(layer(states))
            states = functional.dropout(states, self.dropout, training=torch.is_grad_enabled())
        outputs: Tensor = self.last(states)
        return outputs


def _he_layer(width: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a layer that preserves the scale of its inputs (He et al. 2015)."""
    layer = linear_head(width, outputs, generator)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    return layer
