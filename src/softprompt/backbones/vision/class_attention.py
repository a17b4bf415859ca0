"""What the class token of an image attends to, watched while the image runs through a vision transformer.

Prompts that enter a layer as keys and values are seen like those that stand among the rows: the weights are computed
again, from the class token's query and all keys. Letters: H heads, P prompt rows, S special rows, h x w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from softprompt.backbones.vision.tower import WATCH, Tower, attention_of


@dataclass(frozen=True)
class ClassAttention:
    """Shares of the class token's attention in each layer; those of one head in one layer sum to 1. Float32 or wider.

    prompts  per layer (H, P): a key-value prefix, then the layer's own prompt, then rows that stay from layer to layer
    special  (L, H, S): the class token itself, then the distillation token or registers
    patches  (L, H, h, w), row by row as they lie in the image
    """

    prompts: tuple[Tensor, ...]
    special: Tensor
    patches: Tensor

    def shares(self) -> dict[str, list[float]]:
        """Of each layer, mean over heads: what goes to "prompts", "patches", and "class token and registers"."""
        return {
            "prompts": [layer.sum(-1).mean().item() for layer in self.prompts],
            "patches": self.patches.sum((-2, -1)).mean(-1).tolist(),
            "class token and registers": self.special.sum(-1).mean(-1).tolist(),
        }


@dataclass
class ClassWatch:
    """Of each attention module, by its id: (H, keys) weights of the class token, and how many rows were its own."""

    weights: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Of several passes the last one stays: methods that look at an image first run it without prompts."""
        if len(query) != 1:
            raise ValueError(f"the class token is watched on one image at a time, found {len(query)}")
        first = query[0, :, :1]  # (1, H, T, D) -> (H, 1, D)
        first = first.to(torch.promote_types(first.dtype, torch.float32))
        scores = first @ key[0].to(first.dtype).transpose(-2, -1)  # (H, 1, D) x (H, D, K) -> (H, 1, K)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.weights[id(module)] = (scores[:, 0] * scale).softmax(dim=-1), query.shape[2]


@contextmanager
def watched() -> Iterator[ClassWatch]:
    """Within the block the class token's attention is recorded, of one image at a time."""
    watch = ClassWatch()
    token = WATCH.set(watch)
    try:
        yield watch
    finally:
        WATCH.reset(token)


def sorted_out(tower: Tower, watch: ClassWatch, grid: tuple[int, int]) -> ClassAttention:
    """What was watched, by what it fell on. grid: (h, w) patches of the image.

    Rows stand as [beside, class token, prompts, other special rows, patches].
    """
    prompts, special, patches = [], [], []
    count = grid[0] * grid[1]
    for layer in tower.layers:
        weights, own = watch.weights[id(attention_of(layer))]
        beside = weights.shape[1] - own
        inside = own - tower.special - count
        kinds = weights.split([beside, 1, inside, tower.special - 1, count], dim=1)
        prompts.append(torch.cat([kinds[0], kinds[2]], dim=1))
        special.append(torch.cat([kinds[1], kinds[3]], dim=1))
        patches.append(kinds[4].unflatten(1, grid))
    return ClassAttention(tuple(prompts), torch.stack(special), torch.stack(patches))
