"""Full fine-tuning: every weight of a copy of the backbone. The upper bound that prompts are judged by."""

from __future__ import annotations

import copy

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FullTuning(NoPrompt):
    """Trains a float32 copy; the given backbone stays frozen and untouched. Its saved form is as large as the model."""

    name = "full-tuning"

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = copy.deepcopy(backbone.model).float().requires_grad_(True)
        return backbone.with_model(model)

    def learning_rate(self, spec: BackboneSpec) -> float:
        return 2e-5
