"""A prompt in a causal model the obvious way: one row, one target at a time, plain concatenation, nothing shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.outputs import EncodedRow


def embed(
    model: PreTrainedModel,
    atoms: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Input embeddings of a sequence, virtual token k taken from `tokens` (P, d): (T, d).

    offset (s, d) is added to the first s text tokens; token_offset, d numbers to d, is added to each.
    """
    table = model.get_input_embeddings()
    pieces, number = [], 0
    for atom in atoms:
        if atom < 0:
            pieces.append(tokens[-1 - atom])
            continue
        word = table(torch.tensor(atom))
        piece = word
        if offset is not None and number < len(offset):
            piece = piece + offset[number]
        if token_offset is not None:
            piece = piece + token_offset(word)
        number += 1
        pieces.append(piece)
    return torch.stack(pieces)


def logits(
    model: PreTrainedModel,
    atoms: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Next-token logits after every position of one sequence, (T, V)."""
    embeds = embed(model, atoms, tokens, offset, token_offset)
    return model(inputs_embeds=embeds[None], use_cache=False).logits[0]


def states(model: PreTrainedModel, row: EncodedRow, tokens: Tensor, offset: Tensor | None = None) -> Tensor:
    """Last hidden states of one row where it is read, (len(read), d)."""
    inputs = embed(model, row.context, tokens, offset)[None]
    found = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0]
    return torch.stack([found[i] for i in row.read])


def target_log_likelihood(
    model: PreTrainedModel,
    row: EncodedRow,
    target: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """log p(target | context) of one row, token by token, (len(target),)."""
    found = logits(model, row.context + tuple(target)[:-1], tokens, offset, token_offset).log_softmax(-1)
    start = len(row.context) - 1
    return torch.stack([found[start + j, token] for j, token in enumerate(target)])


def greedy(
    model: PreTrainedModel,
    atoms: Sequence[int],
    tokens: Tensor,
    new: int,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> list[int]:
    """Greedy continuation, everything computed again for each token."""
    sequence = list(atoms)
    for _ in range(new):
        sequence.append(int(logits(model, sequence, tokens, offset, token_offset)[-1].argmax()))
    return sequence[len(atoms) :]
