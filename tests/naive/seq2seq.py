"""A prompt in an encoder-decoder the obvious way: one row, one target at a time, plain concatenation, no cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.outputs import EncodedRow


def embed(
    table: torch.nn.Module,
    atoms: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Input embeddings of a sequence, virtual token k taken from `tokens` (P, d): (T, d)."""
    pieces, number = [], 0
    for atom in atoms:
        if atom < 0:
            pieces.append(tokens[-1 - atom])
            continue
        word = piece = table(torch.tensor(atom))
        if token_offset is not None:
            piece = piece + token_offset(word)
        if offset is not None and number < len(offset):
            piece = piece + offset[number]
        number += 1
        pieces.append(piece)
    return torch.stack(pieces)


def logits(
    model: PreTrainedModel,
    row: EncodedRow,
    written: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Next-token logits after each token that the decoder has written, (len(written), V).

    A text model reads `row.context`; a speech model reads `row.media` and has the context before what is written.
    """
    if model.main_input_name == "input_features":
        assert row.media is not None
        states = model.get_encoder()(row.media[None])
        atoms = row.context + tuple(written)
        begun = embed(model.get_decoder().get_input_embeddings(), atoms, tokens, offset, token_offset)
        return model(encoder_outputs=states, decoder_inputs_embeds=begun[None], use_cache=False).logits[0]
    read = embed(model.get_encoder().get_input_embeddings(), row.context, tokens, offset, token_offset)
    return model(
        inputs_embeds=read[None], decoder_input_ids=torch.tensor([list(written)]), use_cache=False
    ).logits[0]


def states(model: PreTrainedModel, row: EncodedRow, tokens: Tensor) -> Tensor:
    """Last hidden states of a row's context, (T, d): the encoder's, in a speech model the decoder's."""
    part = model.get_decoder() if model.main_input_name == "input_features" else model.get_encoder()
    read = embed(part.get_input_embeddings(), row.context, tokens)[None]
    if part is model.get_encoder():
        return part(inputs_embeds=read).last_hidden_state[0]
    assert row.media is not None
    heard = model.get_encoder()(row.media[None]).last_hidden_state
    return part(inputs_embeds=read, encoder_hidden_states=heard, use_cache=False).last_hidden_state[0]


def target_log_likelihood(
    model: PreTrainedModel,
    row: EncodedRow,
    target: Sequence[int],
    tokens: Tensor,
    offset: Tensor | None = None,
    token_offset: Callable[[Tensor], Tensor] | None = None,
    *,
    start: Sequence[int],
) -> Tensor:
    """log p(target | row) token by token, (len(target),). start: what the decoder begins with, () for speech."""
    found = logits(model, row, (*start, *target[:-1]), tokens, offset, token_offset)
    found = found.log_softmax(-1)[-len(target) :]
    return torch.stack([found[j, token] for j, token in enumerate(target)])


def greedy(
    model: PreTrainedModel,
    row: EncodedRow,
    tokens: Tensor,
    new: int,
    *,
    start: Sequence[int],
    offset: Tensor | None = None,
) -> list[int]:
    """Greedy continuation, everything computed again for each token."""
    written = list(start)
    for _ in range(new):
        written.append(int(logits(model, row, written, tokens, offset)[-1].argmax()))
    return written[len(start) :]
