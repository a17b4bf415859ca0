"""A prompt of words the obvious way: written into every row, one row and one prompt at a time, nothing shared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.outputs import EncodedRow
from tests.naive.causal import target_log_likelihood


def loss(backbone: Backbone, rows: Sequence[EncodedRow], ids: Sequence[int]) -> Tensor:
    """Mean cross-entropy over labels of one word each, the words `ids` in the slots, (): one pass a row and label."""
    none = torch.zeros(0, backbone.spec.width)
    losses = []
    for row in rows:
        assert row.gold is not None
        context = tuple(atom if atom >= 0 else ids[-1 - atom] for atom in row.context)
        written = EncodedRow(context, row.targets, row.gold)
        scores = torch.stack(
            [target_log_likelihood(backbone.model, written, target, none).sum() for target in row.targets]
        )
        losses.append(-scores.log_softmax(dim=0)[row.gold])
    return torch.stack(losses).mean()


def soft_loss(backbone: Backbone, rows: Sequence[EncodedRow], tokens: Tensor) -> Tensor:
    """The same with virtual tokens (P, d), differentiable in them."""
    losses = []
    for row in rows:
        assert row.gold is not None
        scores = torch.stack(
            [target_log_likelihood(backbone.model, row, target, tokens).sum() for target in row.targets]
        )
        losses.append(-scores.log_softmax(dim=0)[row.gold])
    return torch.stack(losses).mean()
