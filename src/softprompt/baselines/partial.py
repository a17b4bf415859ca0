"""Partial tuning trains the last layers of the model, the norm after them, and the head of the task.

Partial-k of Jia et al., ECCV 2022 (arXiv 2203.12119), section 4.1; Yosinski et al., NeurIPS 2014 (arXiv 1411.1792).
"""

from __future__ import annotations

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, sharing_copy, train_own
from softprompt.baselines._layers import last_layers, without_attention


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PartialTuning(NoPrompt):
    """The last layers of a copy are trained, in a speech model those of the decoder; the other layers are shared.

    Raises ValueError for more layers than the model has, and for a model whose layers are not found or share their weights.
    """

    layers: int = Field(default=1, ge=1)
    """k, the number of layers, counted from the end. The paper uses 1, 2 and 4."""

    name = "partial-tuning"

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is not None:
            return "a dual encoder has the last layers of two towers: load its vision tower alone"
        if "cross" in spec.places and spec.read_media is None:
            return "words are read behind its decoder and heads behind its encoder, so which layers are the last is open"
        return without_attention(spec)

    def frozen_layers(self, spec: BackboneSpec) -> int | None:
        return max(0, spec.layers - self.layers)

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = sharing_copy(backbone.model)
        layers, norms = last_layers(model, self.layers)
        own: dict[torch.Tensor, torch.nn.Parameter] = {}
        for module in [part for top in (*layers, *norms) for part in top.modules()]:
            for name, _ in list(module.named_parameters(recurse=False)):
                train_own(module, name, own)
        return backbone.with_model(model)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the smallest rate of the paper's search (1e-4 to 5e-3)."""
        return 1e-4
