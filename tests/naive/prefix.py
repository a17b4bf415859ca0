"""A key-value prefix in a causal model the obvious way: a filled cache, one row, one target at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.outputs import EncodedRow, KeyValue
from tests.naive.causal import embed


def logits(model: PreTrainedModel, atoms: Sequence[int], prefix: Sequence[KeyValue]) -> Tensor:
    """Next-token logits after every position of one sequence behind a prefix of (1, Hkv, P, D), (T, V)."""
    return model(**_inputs(model, atoms, prefix)).logits[0]


def states(model: PreTrainedModel, atoms: Sequence[int], prefix: Sequence[KeyValue]) -> Tensor:
    """Last hidden states of one sequence behind a prefix, (T, d)."""
    return model.base_model(**_inputs(model, atoms, prefix)).last_hidden_state[0]


def _inputs(model: PreTrainedModel, atoms: Sequence[int], prefix: Sequence[KeyValue]) -> dict[str, Any]:
    cache = DynamicCache(config=model.config)
    for layer, (key, value) in enumerate(prefix):
        cache.update(key, value, layer)
    mask = torch.ones(1, prefix[0][0].shape[2] + len(atoms), dtype=torch.long)
    embeds = embed(model, atoms, torch.empty(0))[None]
    return {"inputs_embeds": embeds, "attention_mask": mask, "past_key_values": cache, "use_cache": True}


def target_log_likelihood(
    model: PreTrainedModel, row: EncodedRow, target: Sequence[int], prefix: Sequence[KeyValue]
) -> Tensor:
    """log p(target | prefix, context) of one row, token by token, (len(target),)."""
    found = logits(model, row.context + tuple(target)[:-1], prefix).log_softmax(-1)
    start = len(row.context) - 1
    return torch.stack([found[start + j, token] for j, token in enumerate(target)])


def greedy(model: PreTrainedModel, atoms: Sequence[int], prefix: Sequence[KeyValue], new: int) -> list[int]:
    """Greedy continuation, everything behind the prefix computed again for each token."""
    sequence = list(atoms)
    for _ in range(new):
        sequence.append(int(logits(model, sequence, prefix)[-1].argmax()))
    return sequence[len(atoms) :]
