"""A prefix LM the obvious way: one row, one target at a time, with a mask that anyone can read."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.outputs import EncodedRow
from tests.naive.causal import embed


def target_log_likelihood(
    model: PreTrainedModel,
    row: EncodedRow,
    target: tuple[int, ...],
    tokens: Tensor,
    window: int | None = None,
) -> Tensor:
    """log p of each token of a target behind its row, (len(target),): the context sees itself both ways."""
    context = len(row.context)
    embeds = embed(model, row.context + target[:-1], tokens)
    length = len(embeds)
    places = torch.arange(length)
    seen = places[None, :] <= places[:, None]
    seen[:context, :context] = True
    if window is not None:
        seen &= (places[None, :] - places[:, None]).abs() < window
    mask = torch.where(seen, 0.0, float("-inf")).to(embeds.dtype)[None, None]
    # A dictionary keeps transformers from making masks of its own for models that mix kinds of layers.
    output = model(inputs_embeds=embeds[None], attention_mask=mask, use_cache=False)
    likelihoods = output.logits[0, context - 1 :].log_softmax(dim=-1)  # (1, T, V) -> (len(target), V)
    return likelihoods[torch.arange(len(target)), torch.tensor(target)]
