"""A ViT with key-value prefixes, attention written out, one image at a time."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from tests.naive.vision import embedded


def class_state(model: Any, image: Tensor, prefix: Sequence[tuple[Tensor, Tensor] | None]) -> Tensor:
    """The class token behind the last norm, (d,). prefix: per layer keys and values (H, P, D), or None."""
    rows = embedded(model, image)  # (T, d)
    for layer, own in zip(model.layers, prefix, strict=True):
        x, attention = layer.layernorm_before(rows), layer.attention
        outputs = []
        heads = model.config.num_attention_heads
        size = x.shape[1] // heads
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            q, k, v = (f(x)[:, part] for f in (attention.q_proj, attention.k_proj, attention.v_proj))
            if own is not None:
                k, v = torch.cat([own[0][h], k]), torch.cat([own[1][h], v])
            outputs.append((q @ k.T / sqrt(size)).softmax(1) @ v)
        rows = rows + attention.o_proj(torch.cat(outputs, dim=1))
        rows = rows + layer.mlp(layer.layernorm_after(rows))
    state: Tensor = model.layernorm(rows[0])
    return state
