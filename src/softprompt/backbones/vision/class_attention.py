"""What the class token of an image attends to, recorded while the image runs through a vision transformer.

The attention weights are computed again from the class token's query and all keys, so prompts that enter a layer as keys
and values are recorded like those among the rows. Letters: H heads, P prompt rows, S special rows, h x w patches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from softprompt.backbones.vision.beside import WATCH
from softprompt.backbones.vision.tower import Tower, attention_of


@dataclass(frozen=True)
class ClassAttention:
    """The class token's attention in each layer. The weights of one head in one layer sum to 1. Float32 or wider.

    prompts  per layer (H, P): a key-value prefix, then the layer's own prompt, then prompt rows that stay
    special  (L, H, S): the class token itself, then the distillation token or registers
    patches  (L, H, h, w), row by row as they lie in the image
    """

    prompts: tuple[Tensor, ...]
    special: Tensor
    patches: Tensor

    def shares(self) -> dict[str, list[float]]:
        """The attention to "prompts", "patches", and "class token and registers" in each layer, as means over heads."""
        return {
            "prompts": [layer.sum(-1).mean().item() for layer in self.prompts],
            "patches": self.patches.sum((-2, -1)).mean(-1).tolist(),
            "class token and registers": self.special.sum(-1).mean(-1).tolist(),
        }


@dataclass
class ClassWatch:
    """For each attention module, by its id: weights (H, keys) of the class token, and the number of the image's own rows."""

    weights: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def __call__(self, module: nn.Module, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Record one pass. A later pass replaces it: methods whose prompt depends on the image run it without prompts first."""
        if len(query) != 1:
            raise ValueError(f"the class token is watched on one image at a time, found {len(query)}")
        first = query[0, :, :1]  # (1, H, T, D) -> (H, 1, D)
        first = first.to(torch.promote_types(first.dtype, torch.float32))
        scores = first @ key[0].to(first.dtype).transpose(-2, -1)  # (H, 1, D) x (H, D, K) -> (H, 1, K)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        self.weights[id(module)] = (scores[:, 0] * scale).softmax(dim=-1), query.shape[2]


@contextmanager
def watched() -> Iterator[ClassWatch]:
    """Within the block the class token's attention is recorded, for one image at a time."""
    watch = ClassWatch()
    token = WATCH.set(watch)
    try:
        yield watch
    finally:
        WATCH.reset(token)


def sorted_out(tower: Tower, watch: ClassWatch, grid: tuple[int, int]) -> ClassAttention:
    """The recorded attention, sorted by what it falls on.

    tower  that was watched
    watch  the record
    grid   (h, w) patches of the image

    The keys stand as [beside the rows, class token, prompts, other special rows, patches].
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
