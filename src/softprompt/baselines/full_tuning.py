"""Full fine-tuning: every weight of a copy of the backbone. The upper bound that prompts are judged by."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines.untrained import Words
from softprompt.prompts.base import BuildContext, Method, PromptModule


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FullTuning(Method):
    """Trains a float32 copy; the given backbone stays frozen and untouched. Its saved form is as large as the model."""

    name = "full-tuning"

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = copy.deepcopy(backbone.model).float().requires_grad_(True)
        return backbone.with_model(model)

    def build(self, context: BuildContext) -> PromptModule:
        return Words(torch.zeros(0, context.spec.width))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return Words(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        return 2e-5
