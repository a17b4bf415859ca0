"""Bottleneck adapters after sublayers.

Houlsby et al., ICML 2019 (arXiv 1902.00751); Pfeiffer et al., EMNLP 2020 (arXiv 2007.07779):

h <- h + W_up gelu(W_down h + b_down) + b_up,   W_down in R^(m x d), W_up in R^(d x m)

It is placed after the last projection of a sublayer, before the residual connection.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, sharing_copy, trained_dtype
from softprompt.baselines._layers import (
    attention_parts,
    outputs_of,
    projections,
    transformer_layers,
    without_attention,
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Adapter(NoPrompt):
    """Bottlenecks are trained in every layer of a copy, which shares its other weights with the given backbone.

    The original also trains the layer norms; here they stay frozen.
    Raises ValueError for a model whose sublayers are not found (a mixture of experts, a state-space model).
    """

    bottleneck: int = Field(default=16, gt=0)
    """m, the width of the bottleneck."""
    places: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """houlsby: after attention (and cross-attention) and after the feed-forward network. pfeiffer: after the latter alone."""

    name = "adapter"

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is not None:
            return "its adapters have one width, and the two towers of a dual encoder need not"
        return without_attention(spec)

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = sharing_copy(backbone.model)
        for layer in transformer_layers(model):
            attention, feed_forward = sublayer_outputs(layer, width_of(model))
            for projection in [*attention, feed_forward] if self.places == "houlsby" else [feed_forward]:
                insert(projection, self.bottleneck, width_of(model), generator)
        return backbone.with_model(model)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return a rate from the middle of the search by Houlsby et al., 3e-5 to 3e-3."""
        return 1e-3


class Bottleneck(nn.Module):
    """The change that an adapter adds, (..., d) -> (..., d), computed in float32.

    The initial value of W_down is drawn from N(0, 0.01^2) as in the original, and that of W_up is 0, so that the adapter begins
    as the identity. W_up learns from the first step and W_down from the second. With both at zero, neither would ever receive
    a gradient.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.down = nn.utils.skip_init(nn.Linear, width, bottleneck, dtype=dtype, device=device)
        self.up = nn.utils.skip_init(nn.Linear, bottleneck, width, dtype=dtype, device=device)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(bottleneck, width, generator=generator) * 1e-2)
            for tensor in (self.down.bias, self.up.weight, self.up.bias):
                tensor.zero_()

    def forward(self, states: Tensor) -> Tensor:
        own = states.to(self.down.weight.dtype)
        change: Tensor = self.up(functional.gelu(self.down(own)))
        return change.to(states.dtype)


def insert(projection: nn.Module, bottleneck: int, width: int, generator: torch.Generator) -> None:
    """Add an adapter after a projection, as its submodule `adapter`."""
    weight = projection.weight
    assert isinstance(weight, Tensor)
    adapter = Bottleneck(width, bottleneck, trained_dtype(weight.dtype), weight.device, generator)
    projection.add_module("adapter", adapter)
    projection.register_forward_hook(_adapted)


def _adapted(projection: nn.Module, args: Any, output: Tensor) -> Tensor:
    adapter = projection.adapter
    assert isinstance(adapter, Bottleneck)
    return output + adapter(output)


def sublayer_outputs(layer: nn.Module, width: int) -> tuple[list[nn.Module], nn.Module]:
    """Return the last projections of a layer's attentions and of its feed-forward network; the output of each is (..., d).

    Raises ValueError if they are not found.
    """
    parts = attention_parts(layer)
    attention = [projections(part)[-1] for part in parts]
    inside = {id(module) for part in parts for module in part.modules()}
    others = [module for module in projections(layer) if id(module) not in inside]
    found = [*attention, *others[-1:]]
    if not others or any(outputs_of(module) != width for module in found):
        raise ValueError(
            f"{type(layer).__name__}: its attention ({len(attention)} parts) and feed-forward network should end in linear "
            f"layers with {width} outputs, found {[outputs_of(module) for module in found]}; adapters cannot be placed"
        )
    return attention, others[-1]


def width_of(model: PreTrainedModel) -> int:
    """Return d, the width of the hidden states between layers."""
    return int(model.config.get_text_config().hidden_size)
