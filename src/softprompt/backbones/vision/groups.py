"""Rows of a batch that run through a vision transformer together: images of one size that carry prompts of one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.backbones.vision.tower import ImagePrompt
from softprompt.outputs import EncodedRow, PromptOutput


def groups_of(
    rows: Sequence[EncodedRow], prompt: PromptOutput, device: torch.device
) -> Iterator[tuple[list[int], ImagePrompt]]:
    """Yield the numbers of the rows in each group, and the prompt that these rows carry, on the device."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    own = None if prompt.rows is None else prompt.rows.tolist()
    lengths = None if prompt.lengths is None else prompt.lengths.tolist()
    for b, row in enumerate(rows):
        assert row.media is not None
        # If each row has a prompt of its own, rows with prompts of one length run together.
        which = row.prompt if own is None else None
        length = None if lengths is None else lengths[row.prompt if own is None else own[b]]
        kind = (which, length, row.media.shape, row.media.dtype, first_layer(row))
        groups.setdefault(kind, []).append(b)
    for (which, length, *_), members in groups.items():
        yield members, _carried(prompt, which, length, members, device)


def first_layer(row: EncodedRow) -> int:
    """The first layer that a row must be run through."""
    return 0 if row.known is None or row.known.layer is None else row.known.layer


def _carried(
    prompt: PromptOutput, which: int | None, length: int | None, members: Sequence[int], device: torch.device
) -> ImagePrompt:
    """The prompt of one group of rows.

    prompt   of the whole batch
    which    number of the prompt that all of them carry; None: each row carries its own, as `prompt.rows` says
    length   to which padded prompts are cut; None: nothing is padded
    members  numbers of the rows in the batch
    device   of the model
    """
    if which is None:
        assert prompt.rows is not None
        index = prompt.rows.to(device)[torch.tensor(members, device=device)]
    else:
        index = torch.tensor([which], device=device)

    def chosen(rows: Tensor, dim: int = 1) -> Tensor:
        mine = rows if len(rows) == 1 else rows.index_select(0, index)
        return mine if length is None else mine.narrow(dim, 0, min(length, mine.shape[dim]))

    def dropped(rows: Tensor) -> Tensor:
        if not prompt.dropout or not torch.is_grad_enabled():
            return rows
        return functional.dropout(rows.expand(len(members), -1, -1), prompt.dropout)

    tokens = None if prompt.tokens is None else dropped(chosen(prompt.tokens))
    layers: tuple[Tensor | None, ...] = ()
    if prompt.layers is not None:
        layers = tuple(dropped(chosen(rows)) if rows.shape[1] else None for rows in prompt.layers)
    prefix = None
    if prompt.prefix is not None:
        prefix = tuple((chosen(key, 2), chosen(value, 2)) for key, value in prompt.prefix)
    return ImagePrompt(tokens=tokens, entry=prompt.entry, layers=layers, prefix=prefix)
