"""Offsets that prompts add to the input embeddings of text tokens, by place (DePT) or by token (ADePT). N tokens, d width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
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


class _Decoding:
    """What is added to the embeddings of new words while one call decodes. See `decoding`."""

    def __init__(self, prompt: PromptOutput, number: Tensor, which: Tensor, first: Tensor | None) -> None:
        self.prompt, self.number, self.which, self.first = prompt, number, which, first
        self.fed = 0 if first is None else -1

    def __call__(self, embeds: Tensor) -> Tensor:
        copies, new = embeds.shape[0] // len(self.number), embeds.shape[1]
        if self.first is not None and self.fed < 0:
            self.fed = 0
            first = self.first if self.first.dim() == 3 else self.first[:, None]  # (B, d) -> (B, 1, d)
            return first.repeat_interleave(copies, 0).to(embeds.dtype)
        steps = torch.arange(self.fed, self.fed + new, device=embeds.device)
        self.fed += new
        numbers = (self.number.repeat_interleave(copies)[:, None] + steps).flatten()
        carried = self.which.repeat_interleave(copies * new)
        return shifted(embeds.flatten(0, 1), numbers, carried, self.prompt).view_as(embeds)


_DECODING: ContextVar[_Decoding | None] = ContextVar("what decoding adds to embeddings", default=None)


def make_shifting(embedding: nn.Module) -> None:
    """Let the embedding of a view add offsets within `decoding`. Elsewhere it embeds as usual."""
    # An instance attribute hides the class's forward.
    embedding.forward = partial(_forward, embedding.forward)


def _forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    embeds, shift = forward(*args, **kwargs), _DECODING.get()
    return embeds if shift is None else shift(embeds)


@contextmanager
def decoding(
    prompt: PromptOutput, number: Tensor, which: Tensor, first: Tensor | None = None
) -> Iterator[None]:
    """Within the block the ids that a view's `generate` feeds get the offsets of `shifted`.

    prompt  with the offsets
    number  (B,) text tokens in each row's context, which is the running number of the first new token
    which   (B,) number of the prompt that each row carries
    first   (B, d) embeddings of each row's last context token, if `generate` feeds it again before any other; (B, T, d)
            those of the whole context, if it is fed first

    Beams and returned sequences of a row must lie side by side.
    """
    token = _DECODING.set(_Decoding(prompt, number, which, first))
    try:
        yield
    finally:
        _DECODING.reset(token)
