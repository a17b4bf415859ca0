"""Copies of a model that share its frozen tensors: a method that trains few weights keeps the others once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.base import BackboneSpec
from softprompt.baselines.untrained import Words
from softprompt.prompts.base import BuildContext, Method, PromptModule


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class NoPrompt(Method):
    """A method that adds nothing to the input: it trains weights of a copy, or a head alone."""

    def build(self, context: BuildContext) -> PromptModule:
        return Words(torch.zeros(0, context.spec.width))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return Words(tensors["tokens"])


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The same modules anew around the same tensors: whatever is put into the copy, the given model does not see it.

    Raises ValueError unless the model is frozen: its tensors would be trained through the copy.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"weights of {type(model).__name__} require a gradient: freeze it with model.requires_grad_(False), as "
            "load_backbone does"
        )
    # deepcopy takes what is in its memo for copied already.
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def trained_dtype(dtype: torch.dtype) -> torch.dtype:
    """Trained weights are float32 whatever the model's precision; float64 stays."""
    return torch.promote_types(dtype, torch.float32)
