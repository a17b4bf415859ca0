"""What the machine's bare matrix products reach, over the weights of a model. N tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.harness import interleaved, middle


@dataclass(frozen=True)
class Product:
    """(N, in) x (in, out), `count` times in one forward pass."""

    tokens: int
    weight: Tensor  # (out, in), one of those that have this shape
    count: int

    @property
    def flop(self) -> float:
        return 2.0 * self.count * self.tokens * self.weight.numel()


def forward_products(model: PreTrainedModel, tokens: int, scored: int) -> list[Product]:
    """All linear layers for `tokens` tokens, and the head for the `scored` ones."""
    head = model.get_output_embeddings()
    found: dict[tuple[int, ...], list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            found.setdefault(tuple(module.weight.shape), []).append(module.weight)
    body = [Product(tokens, same[0], len(same)) for same in found.values()]
    return [*body, Product(scored, head.weight, 1)]


@torch.no_grad()
def gemm_rate(products: Sequence[Product], repetitions: int) -> float:
    """GFLOP per second of these products alone, each shape weighted by its share of the model."""
    seconds = 0.0
    for product in products:
        x = torch.randn(product.tokens, product.weight.shape[1]).to(product.weight)
        times = interleaved({"product": partial(F.linear, x, product.weight)}, repetitions)["product"]
        seconds += product.count * (middle(times) or 0.0)
    return sum(product.flop for product in products) / seconds / 1e9
