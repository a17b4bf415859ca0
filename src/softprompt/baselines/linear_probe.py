"""A linear probe trains a linear head on the last hidden states of the frozen model, and nothing else.

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
    """One linear layer is trained; the task decides what it reads. It shows what is linearly separable without tuning."""

    name = "linear-probe"
    head_only: ClassVar[bool] = True

    def head_learning_rate(self, spec: BackboneSpec) -> float:
        """Return three times the rate of a head that is trained with a prompt; docs/results/language-methods.md measures it."""
        return 3e-3

    def learning_rate(self, spec: BackboneSpec) -> float:
        return self.head_learning_rate(spec)
