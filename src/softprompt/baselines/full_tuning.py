"""Full fine-tuning trains every weight of a copy of the backbone. It is the upper bound that prompts are compared with."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, trained_dtype


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FullTuning(NoPrompt):
    """A float32 copy is trained, a float64 one of a float64 model; the given backbone stays frozen and unchanged.

    The saved prompt is as large as the model.
    """

    name = "full-tuning"

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model: Any = copy.deepcopy(backbone.model)  # transformers types `to` so that no dtype fits
        return backbone.with_model(model.to(trained_dtype(backbone.model.dtype)).requires_grad_(True))

    def learning_rate(self, spec: BackboneSpec) -> float:
        return 2e-5
