"""Copies of a model that share its frozen tensors, so that a method that trains few weights stores the others once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.utils import parametrize
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
    """Return a copy with new modules around the same tensors; what is added to the copy does not change the given model.

    Raises ValueError unless the model is frozen, because its tensors would be trained through the copy.
    """
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"weights of {type(model).__name__} require a gradient: freeze it with model.requires_grad_(False), as "
            "load_backbone does"
        )
    # deepcopy treats what is in its memo as copied already.
    return copy.deepcopy(model, {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())})


def trained_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the precision of trained weights: float32 for every precision of the model except float64, which stays."""
    return torch.promote_types(dtype, torch.float32)


def train_own(module: nn.Module, name: str, own: dict[Tensor, nn.Parameter]) -> None:
    """Replace a shared parameter of a copy by a trained one of its own in float32.

    The module still computes in the precision of the model.

    Arguments:
        module: the module of the copy
        name: the name of the parameter in it
        own: shared tensor -> the parameter that replaced it; a tensor that two modules share stays shared by both
    """
    shared = getattr(module, name)
    dtype = trained_dtype(shared.dtype)
    if shared not in own:
        own[shared] = nn.Parameter(shared.detach().to(dtype, copy=True))
    setattr(module, name, own[shared])
    if dtype != shared.dtype:
        parametrize.register_parametrization(module, name, _Cast(shared.dtype), unsafe=True)
        module.train(module.training)  # the parametrization begins in training mode


class _Cast(nn.Module):
    """The float32 parameter in the precision that the model computes in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, parameter: Tensor) -> Tensor:
        return parameter.to(self.dtype)
