"""Offsets that prompts add to the input embeddings of text tokens, by place (DePT) or by token (ADePT). N tokens, d width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.outputs import PromptOutput


def shifted(embeds: Tensor, number: Tensor, which: Tensor, prompt: PromptOutput) -> Tensor:
    """Input embeddings of text tokens with the offsets of their prompts, (N, d), in the dtype of `embeds`.

    embeds  (N, d) as the model embeds the tokens; the values at virtual tokens do not matter
    number  (N,) how many text tokens of the same sequence stand before each
    which   (N,) number of the prompt that each carries
    prompt  with the offsets
    """
    added = embeds
    if prompt.offset is not None:
        beyond = number >= prompt.offset.shape[1]
        found = prompt.offset[which, number.clamp(max=prompt.offset.shape[1] - 1)]  # (G, s, d) -> (N, d)
        added = added + found.masked_fill(beyond[:, None], 0.0).to(embeds.dtype)
    for g, function in enumerate(prompt.token_offset or ()):
        if function is None:
            continue
        if prompt.count == 1:
            added = added + function(embeds).to(embeds.dtype)
            continue
        places = (which == g).nonzero()[:, 0]
        added = added.index_add(0, places, function(embeds[places]).to(embeds.dtype))
    return added


@contextmanager
def decoding(
    model: nn.Module, prompt: PromptOutput, number: Tensor, which: Tensor, first: Tensor | None = None
) -> Iterator[None]:
    """Within the block the ids that `model.generate` feeds get the offsets of `shifted`.

    model   that decodes
    prompt  with the offsets
    number  (B,) text tokens in each row's context, which is the running number of the first new token
    which   (B,) number of the prompt that each row carries
    first   (B, d) embeddings of each row's last context token, if `generate` feeds it again before any other

    Beams and returned sequences of a row must lie side by side.
    """
    fed = 0 if first is None else -1

    def embed(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        nonlocal fed
        copies, new = output.shape[0] // len(number), output.shape[1]
        if first is not None and fed < 0:
            fed = 0
            return first.repeat_interleave(copies, 0)[:, None].to(
                output.dtype
            )  # (B, d) -> (B * copies, 1, d)
        steps = torch.arange(fed, fed + new, device=output.device)
        fed += new
        numbers = (number.repeat_interleave(copies)[:, None] + steps).flatten()
        carried = which.repeat_interleave(copies * new)
        return shifted(output.flatten(0, 1), numbers, carried, prompt).view_as(output)

    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(embed)
    try:
        yield
    finally:
        handle.remove()
