"""Sequences of atoms as padded batches of embeddings, for models whose tokens see each other both ways.

There the state of a token depends on the whole sequence, so rows share nothing. Rows of similar length are run together
(`by_similar_length`), so that little padding is computed.

Letters: S sequences, T tokens of the longest, P virtual tokens, s offsets, d width; see outputs.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from softprompt.backbones.engine import shifted
from softprompt.backbones.vocabulary import table_of
from softprompt.outputs import PromptOutput

FULL = 0.75
"""Smallest ratio of the shortest sequence of a bucket to its longest: at most a quarter of what is computed is padding."""


def by_similar_length(lengths: Sequence[int], most: float = FULL) -> list[list[int]]:
    """Indices in buckets, ordered within each. The shortest length of a bucket is at least `most` times its longest."""
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
    """Input embeddings (S, T, d) in the model's dtype, padded on the right, and the mask (S, T), 0 at padding.

    embedding  module that embeds token ids
    sequences  atoms of each
    carried    number of the prompt of each
    prompt     with virtual tokens and offsets

    Raises ValueError for a virtual token that its prompt does not have.
    """
    device = table_of(embedding).device
    size = len(sequences), max(map(len, sequences))
    ids, number = torch.zeros(size, dtype=torch.long), torch.zeros(size, dtype=torch.long)
    mask = torch.zeros(size, dtype=torch.long)
    soft: list[int] = []
    slot: list[int] = []
    available = _tokens_of_prompts(prompt)
    for b, (atoms, g) in enumerate(zip(sequences, carried, strict=True)):
        row = torch.tensor(atoms, dtype=torch.long)
        is_text = (row >= 0).long()
        ids[b, : len(atoms)] = row.clamp(min=0)
        number[b, : len(atoms)] = is_text.cumsum(0) - is_text
        mask[b, : len(atoms)] = 1
        for i, atom in enumerate(atoms):
            if atom < 0:
                if (k := -1 - atom) >= available[g]:
                    raise ValueError(f"a row asks for virtual token {k}, prompt {g} has {available[g]}")
                soft.append(b * size[1] + i)
                slot.append(g * max(available) + k)

    embeds = embedding(ids.to(device))  # (S, T, d)
    which = torch.tensor(carried, device=device).repeat_interleave(size[1])
    flat = shifted(embeds.flatten(0, 1), number.flatten().to(device), which, prompt)  # (S * T, d)
    if prompt.tokens is not None and soft:
        tokens = prompt.tokens[:, : max(available)].flatten(0, 1)  # (G, P, d) -> (G * P, d)
        virtual = tokens.index_select(0, torch.tensor(slot, device=device))
        flat = flat.index_copy(0, torch.tensor(soft, device=device), virtual.to(flat.dtype))
    return flat.view(embeds.shape), mask.to(device)


def _tokens_of_prompts(prompt: PromptOutput) -> list[int]:
    """The number of virtual tokens of each prompt. If there is a prefix, `lengths` counts its positions instead."""
    if prompt.tokens is None:
        return [0] * prompt.count
    if prompt.lengths is not None and prompt.prefix is None:
        return [int(length) for length in prompt.lengths]
    return [prompt.tokens.shape[1]] * prompt.tokens.shape[0]
