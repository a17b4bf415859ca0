"""Key-value prefixes of an encoder-decoder the obvious way: one row, one target, attention written out.

Encoder and cross-attention: softmax over [prefix; tokens], a relative position bias 0 at the prefix. Decoder: the prefix
lies in the cache, in front of the start token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache, EncoderDecoderCache, PreTrainedModel

from softprompt.outputs import EncodedRow
from tests.naive.seq2seq import embed

Pairs = Sequence[tuple[Tensor, Tensor]]


@contextmanager
def _written_out(model: PreTrainedModel, prefixes: dict[int, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """prefixes: keys and values (H, P, D) by the id of the attention module that they stand in front of."""

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        bias = options.get("position_bias")
        if bias is None:
            bias = query.new_zeros(1, 1, query.shape[2], key.shape[2])
        if id(module) in prefixes:
            keys, values = prefixes[id(module)]
            key, value = torch.cat([keys[None], key], dim=2), torch.cat([values[None], value], dim=2)
            bias = torch.cat([bias.new_zeros(*bias.shape[:3], keys.shape[1]), bias], dim=3)
        scores = query @ key.transpose(2, 3) * options["scaling"] + bias
        if module.is_causal:
            later = torch.ones_like(scores, dtype=torch.bool).triu(1 + key.shape[2] - query.shape[2])
            scores = scores.masked_fill(later, float("-inf"))
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("naive_prefix", attend)
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    for config in configs.values():
        config._attn_implementation = "naive_prefix"
    yield
    for key, config in configs.items():
        config._attn_implementation = before[key]


def logits(
    model: PreTrainedModel,
    row: EncodedRow,
    written: Sequence[int],
    encoder: Pairs,
    decoder: Pairs,
    cross: Pairs,
) -> Tensor:
    """As tests.naive.seq2seq.logits, behind prefixes; per layer keys and values (H, P, D)."""

    def attentions(part: Any) -> list[Any]:
        return [module for module in part.modules() if hasattr(module, "is_causal")]

    inner = [module for module in attentions(model.get_decoder()) if module.is_causal]
    outer = [module for module in attentions(model.get_decoder()) if not module.is_causal]
    prefixes = dict(zip(map(id, attentions(model.get_encoder())), encoder, strict=True))
    prefixes |= dict(zip(map(id, outer), cross, strict=True))
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    for layer, (keys, values) in enumerate(decoder):
        cache.self_attention_cache.update(keys[None], values[None], layer)
    assert len(inner) == len(decoder)
    speech = model.main_input_name == "input_features"
    with _written_out(model, prefixes):
        if speech:
            assert row.media is not None
            states = model.get_encoder()(row.media[None])
        else:
            read = embed(model.get_encoder().get_input_embeddings(), row.context, torch.empty(0))
            states = model.get_encoder()(inputs_embeds=read[None])
        atoms = (*row.context, *written) if speech else tuple(written)
        begun = embed(model.get_decoder().get_input_embeddings(), atoms, torch.empty(0))
        output = model(
            encoder_outputs=states, decoder_inputs_embeds=begun[None], past_key_values=cache, use_cache=True
        )
    return output.logits[0]
