"""A prefix LM the obvious way: one row, one target at a time, with a mask that anyone can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.outputs import EncodedRow, KeyValue
from tests.naive.causal import embed


def target_log_likelihood(
    model: PreTrainedModel,
    row: EncodedRow,
    target: Sequence[int],
    tokens: Tensor,
    window: int | None = None,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
    prefix: Sequence[KeyValue] = (),
) -> Tensor:
    """log p of each token of a target behind its row, (len(target),): the context sees itself both ways."""
    atoms = row.context + tuple(target)[:-1]
    embeds = embed(model, atoms, tokens, offset, token_offset)
    output = model(**_inputs(model, embeds, len(row.context), window, prefix))
    likelihoods = output.logits[0, len(row.context) - 1 :].log_softmax(
        dim=-1
    )  # (1, T, V) -> (len(target), V)
    return likelihoods[torch.arange(len(target)), torch.tensor(target)]


def states(model: PreTrainedModel, row: EncodedRow, tokens: Tensor) -> Tensor:
    """Last hidden states of one row where it is read, (len(read), d)."""
    inputs = _inputs(model, embed(model, row.context, tokens), len(row.context), None, ())
    return model.base_model(**inputs).last_hidden_state[0][list(row.read)]


def _inputs(
    model: PreTrainedModel, embeds: Tensor, context: int, window: int | None, prefix: Sequence[KeyValue]
) -> dict[str, Any]:
    """Everything sees the prefix, the context itself both ways, the answer what stands before it."""
    before = prefix[0][0].shape[2] if prefix else 0
    places = torch.arange(len(embeds))
    seen = places[None, :] <= places[:, None]
    seen[:context, :context] = True
    if window is not None:
        seen &= (places[None, :] - places[:, None]).abs() < window
    seen = torch.cat([torch.ones(len(embeds), before, dtype=torch.bool), seen], dim=1)  # (T, P + T)
    mask = torch.where(seen, 0.0, float("-inf")).to(embeds.dtype)[None, None]
    cache = DynamicCache(config=model.config) if prefix else None
    for layer, (key, value) in enumerate(prefix):
        cache.update(key, value, layer)  # type: ignore[union-attr]
    return {
        "inputs_embeds": embeds[None],
        "attention_mask": mask,
        "past_key_values": cache,
        "use_cache": cache is not None,
    }
