"""Linear probe: nothing but a linear head on the frozen model's last hidden states.

softmax(W h + b),   W in R^(K x d)
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from softprompt.backbones.base import BackboneSpec
from softprompt.baselines._copies import NoPrompt


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LinearProbe(NoPrompt):
    """One linear layer; the task decides what it reads. What is linearly separable without any tuning."""

    name = "linear-probe"
    head_only: ClassVar[bool] = True

    def head_learning_rate(self, spec: BackboneSpec) -> float:
        """Three times that of a head beside a prompt: measured in docs/results/language-methods.md."""
        return 3e-3

    def learning_rate(self, spec: BackboneSpec) -> float:
        return self.head_learning_rate(spec)
