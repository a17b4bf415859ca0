"""Side-tuning the obvious way, one image at a time: s(a) f(x) + (1 - s(a)) g(x) (Zhang et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.naive import vision


def state(
    model: PreTrainedModel, image: Tensor, patches: int, network: nn.Module, alpha: Tensor, read: str
) -> Tensor:
    """What the head reads, (d,)."""
    share = 1 / (1 + torch.exp(-alpha))
    return share * vision.state(model, image, patches, read=read) + (1 - share) * network(image[None])[0]
