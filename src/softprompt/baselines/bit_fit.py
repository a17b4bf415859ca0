"""BitFit trains every bias of the model and nothing else. Ben Zaken, Goldberg, Ravfogel, ACL 2022 (arXiv 2106.10199)."""

from __future__ import annotations

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, sharing_copy, train_own


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class BitFit(NoPrompt):
    """All biases of a copy are trained, those of the norms too; it shares its other weights with the given backbone.

    Raises ValueError for a model without biases, such as Llama.
    """

    name = "bitfit"

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = sharing_copy(backbone.model)
        own: dict[Tensor, nn.Parameter] = {}  # a bias may belong to two modules
        for module in list(model.modules()):
            for name, _ in list(module.named_parameters(recurse=False)):
                if name == "bias" or name.endswith("_bias"):
                    train_own(module, name, own)
        if not own:
            raise ValueError(
                f"{backbone.name} has no biases, so there is nothing that {self.name} could train"
            )
        return backbone.with_model(model)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the upper end of the paper's search (1e-4 to 1e-3 for BERT)."""
        return 1e-3
