"""L2P the obvious way: one image at a time, every subset of the pool tried, prompts concatenated. Wang et al. 2022."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import sqrt

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.naive import vision


def query(model: PreTrainedModel, image: Tensor, patches: int, read: str = "class") -> Tensor:
    """q(x), (d,)."""
    return vision.state(model, image, patches, read=read).detach()


def gamma(q: Tensor, k: Tensor) -> Tensor:
    """Cosine distance."""
    return 1 - (q * k).sum() / ((q * q).sum().sqrt() * (k * k).sum().sqrt())


def chosen(q: Tensor, keys: Tensor, top: int, shares: Sequence[float] | None = None) -> list[int]:
    """K_x: of all subsets the one of the smallest sum, by equation 3 or, with shares h, by equation 4.

    Of subsets that cost the same by equation 4, which prompts that were never chosen do, the one that is best by 3.
    """
    near = [float(gamma(q, k)) for k in keys.detach()]
    h = [1.0] * len(keys) if shares is None else shares

    def cost(subset: tuple[int, ...]) -> tuple[float, float]:
        return sum(near[i] * h[i] for i in subset), sum(near[i] for i in subset)

    best = min(combinations(range(len(keys)), top), key=cost)
    return sorted(best, key=lambda i: near[i])


def chosen_by_all(picked: Sequence[Sequence[int]], top: int) -> list[int]:
    """What the released code makes of a batch: the prompts that most images chose, of equal counts the lower number."""
    counts = Counter(i for own in picked for i in own)
    return sorted(counts, key=lambda i: (-counts[i], i))[:top]


def state(
    model: PreTrainedModel, image: Tensor, patches: int, prompts: Tensor, picked: Sequence[int], read: str
) -> Tensor:
    """What the head reads, (d,)."""
    rows = torch.cat([prompts[i] for i in picked])  # (N P', d)
    return vision.state(model, image, patches, shallow=rows, read=read)


def pull(q: Tensor, keys: Tensor, picked: Sequence[int]) -> Tensor:
    """The second term of equation 5, without its weight."""
    return torch.stack([gamma(q, keys[i]) for i in picked]).sum()


def cosine_gradient(q: Tensor, k: Tensor) -> Tensor:
    """d gamma / d k by hand, (d,)."""
    size = sqrt(float(q @ q)) * sqrt(float(k @ k))
    return -(q / size - (q @ k) / size * k / (k @ k))
