"""A prompt in an encoder the obvious way: one row, one target at a time, plain concatenation, no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from softprompt.outputs import EncodedRow, KeyValue
from tests.naive.causal import embed


def states(
    model: PreTrainedModel,
    atoms: Sequence[int],
    tokens: Tensor,
    *,
    offset: Tensor | None = None,
    prefix: Sequence[KeyValue] | None = None,
    types: Sequence[int] | None = None,
) -> Tensor:
    """Last hidden states of one row, (T, d); `prefix` per layer (Hkv, P, D) twice."""
    return _run(model.base_model, model, atoms, tokens, offset, prefix, types).last_hidden_state[0]


def target_log_likelihood(
    model: PreTrainedModel,
    row: EncodedRow,
    target: Sequence[int],
    mask: int,
    tokens: Tensor,
    *,
    offset: Tensor | None = None,
    prefix: Sequence[KeyValue] | None = None,
    types: Sequence[int] | None = None,
) -> Tensor:
    """log p of each target token at its mask, (len(target),); a single mask is repeated."""
    atoms = list(row.context)
    if atoms.count(mask) == 1:
        at = atoms.index(mask)
        atoms[at : at + 1] = [mask] * len(target)
        if types is not None:
            types = [*types[:at], *[types[at]] * len(target), *types[at + 1 :]]
    logits = _run(model, model, atoms, tokens, offset, prefix, types).logits[0].log_softmax(-1)
    places = [i for i, atom in enumerate(atoms) if atom == mask]
    return torch.stack([logits[i, token] for i, token in zip(places, target, strict=True)])


def _run(
    part: nn.Module,
    model: PreTrainedModel,
    atoms: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None,
    prefix: Sequence[KeyValue] | None,
    types: Sequence[int] | None,
) -> Any:
    inputs: dict[str, Tensor] = {"inputs_embeds": embed(model, atoms, tokens, offset)[None]}
    if types is not None:
        inputs["token_type_ids"] = torch.tensor([types])
    if prefix is None:
        return part(**inputs)
    embeddings = getattr(model.base_model, "embeddings", None)
    if hasattr(embeddings, "position_embeddings"):  # the prefix takes the first positions
        padding = embeddings.position_embeddings.padding_idx
        first = prefix[0][0].shape[1] + (0 if padding is None else padding + 1)
        inputs["position_ids"] = torch.arange(first, first + len(atoms))[None]
    with _attention_behind(model, prefix):
        return part(**inputs)


@contextmanager
def _attention_behind(model: PreTrainedModel, prefix: Sequence[KeyValue]) -> Iterator[None]:
    """Each layer's attention sees these keys and values in front, whatever its window."""
    layers = iter(prefix)

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        *,
        scaling: float,
        **others: Any,
    ) -> tuple[Tensor, None]:
        before_key, before_value = next(layers)
        length = query.shape[2]
        shared = query.shape[1] // key.shape[1]  # queries of each key-value head
        keys, values = (
            torch.cat([before[None], own], 2).repeat_interleave(shared, dim=1)
            for before, own in ((before_key, key), (before_value, value))
        )
        scores = query @ keys.transpose(2, 3) * scaling
        window = others.get("sliding_window")
        for i in range(length):
            for j in range(length):
                if window is not None and abs(i - j) >= window:
                    scores[:, :, i, before_key.shape[1] + j] = float("-inf")
        out = scores.softmax(-1) @ values
        return out.transpose(1, 2), None

    AttentionInterface.register("naive_prefix", attention)
    before = model.config._attn_implementation
    model.config._attn_implementation = "naive_prefix"
    try:
        yield
    finally:
        model.config._attn_implementation = before
