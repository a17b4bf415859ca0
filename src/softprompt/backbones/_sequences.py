"""Sequences of atoms as padded batches of embeddings, for models whose tokens see each other both ways.

What such a token is depends on the whole sequence, so nothing is shared between rows. Rows of similar length go
together (`by_similar_length`), so that little padding is computed.

Letters: S sequences, T tokens of the longest, P virtual tokens, s offsets, d width; see outputs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softprompt.outputs import PromptOutput

FULL = 0.75
"""Shortest sequence of a bucket beside its longest: at most a quarter of what is computed is padding."""


def by_similar_length(lengths: Sequence[int], most: float = FULL) -> list[list[int]]:
    """Indices in buckets whose shortest length is at least `most` of the longest, in order within a bucket."""
    buckets: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not buckets or lengths[i] < most * longest:
            buckets.append([])
            longest = lengths[i]
        buckets[-1].append(i)
    return [sorted(bucket) for bucket in buckets]


def embed_sequences(
    embedding: nn.Module, sequences: Sequence[tuple[int, ...]], carried: Sequence[int], prompt: PromptOutput
) -> tuple[Tensor, Tensor]:
    """Input embeddings (S, T, d) in the model's dtype, padded on the right, and the mask (S, T), 1 at what is real.

    carried: the prompt of each sequence. Offsets go by running text number, as everywhere.
    Raises ValueError for a virtual token that its prompt does not have.
    """
    table = embedding.weight
    assert isinstance(table, Tensor)
    device = table.device
    size = len(sequences), max(map(len, sequences))
    ids, text = torch.zeros(size, dtype=torch.long), torch.full(size, -1)
    mask = torch.zeros(size, dtype=torch.long)
    soft: list[int] = []
    slot: list[int] = []
    available = _tokens_of_prompts(prompt)
    for b, (atoms, g) in enumerate(zip(sequences, carried, strict=True)):
        row = torch.tensor(atoms, dtype=torch.long)
        real = row >= 0
        ids[b, : len(atoms)] = row.clamp(min=0)
        text[b, : len(atoms)] = torch.where(real, real.cumsum(0) - 1, -1)
        mask[b, : len(atoms)] = 1
        for i in (~real).nonzero()[:, 0].tolist():
            k = -1 - atoms[i]
            if k >= available[g]:
                raise ValueError(f"a row asks for virtual token {k}, prompt {g} has {available[g]}")
            soft.append(b * size[1] + i)
            slot.append(g * max(available) + k)

    embeds = embedding(ids.to(device))  # (S, T, d)
    if prompt.offset is not None:
        shift = _text_offsets(prompt.offset, text.to(device), torch.tensor(carried, device=device))
        embeds = embeds + shift.to(embeds.dtype)
    if prompt.tokens is not None and soft:
        flat = prompt.tokens[:, : max(available)].flatten(0, 1)  # (G, P, d) -> (G * P, d)
        virtual = flat.index_select(0, torch.tensor(slot, device=device))
        places = torch.tensor(soft, device=device)
        embeds = embeds.flatten(0, 1).index_copy(0, places, virtual.to(embeds.dtype)).view(embeds.shape)
    return embeds, mask.to(device)


def _tokens_of_prompts(prompt: PromptOutput) -> list[int]:
    """Virtual tokens of each prompt; `lengths` counts prefix positions where there is a prefix."""
    if prompt.tokens is None:
        return [0] * prompt.count
    if prompt.lengths is not None and prompt.prefix is None:
        return [int(length) for length in prompt.lengths]
    return [prompt.tokens.shape[1]] * prompt.tokens.shape[0]


def _text_offsets(offset: Tensor, text: Tensor, carried: Tensor) -> Tensor:
    """DePT's offset of each place, zero at virtual tokens and beyond its length: (G, s, d) -> (S, T, d)."""
    outside = (text < 0) | (text >= offset.shape[1])
    found = offset[carried[:, None], text.clamp(0, offset.shape[1] - 1)]
    return found.masked_fill(outside[..., None], 0.0)
