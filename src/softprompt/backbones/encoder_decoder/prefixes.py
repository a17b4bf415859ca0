"""Key-value prefixes of an encoder-decoder, in front of its three kinds of attention. The model stays untouched.

encoder  Encoders have no cache in transformers, so a registered attention function puts keys and values in front. They
         have no position: a relative position bias (T5) is 0 there, and the text keeps its positions.
decoder  They stand in the cache of the decoder's self-attention, as in PEFT, and take the first P positions.
cross    They stand in the cache of the cross-attention, in front of the encoder's states, and have no position.

Letters: S sequences, H heads, D head size, P prefix positions, G prompts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionMaskInterface,
    Cache,
    EncoderDecoderCache,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from softprompt.backbones.engine import use_attention
from softprompt.outputs import KeyValue

IMPLEMENTATION = "softprompt_encoder_prefix"


class EncoderCall:
    """One pass through an encoder whose attention reads prefixes, or records its keys and values.

    encoder  of the model
    prefix   per layer, keys and values (S, H, P, D) of each sequence's prompt; empty: there are none
    listen   whether the keys and values that each layer computes for its own tokens are recorded in `heard`
    """

    def __init__(
        self, encoder: nn.Module, prefix: tuple[KeyValue, ...] = (), *, listen: bool = False
    ) -> None:
        # The encoder layers of Whisper do not know their number, but modules are listed in the order in which they run.
        attentions = [module for module in encoder.modules() if hasattr(module, "is_causal")]
        self.layer_of = {id(module): layer for layer, module in enumerate(attentions)}
        self.prefix = prefix
        self.listen = listen
        self.heard: dict[int, KeyValue] = {}
        self.reached: set[int] = set()

    def check(self) -> None:
        """Raises NotImplementedError unless every layer's attention was reached."""
        if len(self.reached) != len(self.layer_of) or (
            self.prefix and len(self.prefix) != len(self.layer_of)
        ):
            raise NotImplementedError(
                f"key-value prefixes reach {len(self.reached)} attentions of this encoder, which has "
                f"{len(self.layer_of)}, for {len(self.prefix)} prefixes: it cannot take them"
            )


def _prefixed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt_prefix: EncoderCall,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of an encoder layer over [prefix; its own tokens]. query, key, value (S, H, T, D) -> (S, T, H, D).

    attention_mask: over P + T keys, as the encoder was given it.
    """
    layer = prompt_prefix.layer_of[id(module)]
    prompt_prefix.reached.add(layer)
    if prompt_prefix.listen:
        prompt_prefix.heard[layer] = key, value
    if prompt_prefix.prefix:
        before_key, before_value = prompt_prefix.prefix[layer]
        key = torch.cat([before_key, key], dim=2)  # (S, H, P, D), (S, H, T, D) -> (S, H, P + T, D)
        value = torch.cat([before_value, value], dim=2)
        if position_bias is not None:
            position_bias = nn.functional.pad(position_bias, (before_key.shape[2], 0))
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, position_bias=position_bias, **kwargs
    )
    return output, None


def attend_behind_prefixes(encoder: PreTrainedModel) -> None:
    """Let the encoder of a view attend as the EncoderCall that each call gives it as `prompt_prefix=` says."""
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    use_attention(encoder, IMPLEMENTATION, _prefixed_attention)


class _StandingLayer(DynamicLayer):
    """Keys and values in front of those that a layer computes, which are not stored: backward may run the layer again."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeyValue:
        assert self.keys is not None
        assert self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class _Forgetful(dict[int, bool]):
    """EncoderDecoderCache records here which cross-attentions it holds. This one holds none, and records none."""

    def __setitem__(self, layer: int, updated: bool) -> None:
        pass


def standing_cache(decoder: tuple[KeyValue, ...], cross: tuple[KeyValue, ...]) -> EncoderDecoderCache:
    """A cache for one pass of the decoder that holds only the prefixes (S, H, P, D). Differentiable in them."""
    caches = [Cache(layers=[_StandingLayer(k, v) for k, v in prefix]) for prefix in (decoder, cross)]
    cache = EncoderDecoderCache(*caches)
    cache.is_updated = _Forgetful()
    return cache


def growing_cache(decoder: tuple[KeyValue, ...], cross: tuple[KeyValue, ...]) -> EncoderDecoderCache:
    """A cache for generation that begins with the prefixes (S, H, P, D)."""
    caches = []
    for prefix in (decoder, cross):
        layers: list[Any] = [DynamicLayer() for _ in prefix]
        for layer, (keys, values) in zip(layers, prefix, strict=True):
            layer.update(keys, values)
        caches.append(Cache(layers=layers))
    cache = EncoderDecoderCache(*caches)
    cache.is_updated = dict.fromkeys(range(len(cross)), False)  # the encoder's states are still to come
    return cache
