"""Attention of a vision transformer's layers to keys and values that stand beside the rows of an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.backbones.engine import attend, frozen_linears
from softprompt.outputs import KeyValue

IMPLEMENTATION = "softprompt_beside"

_BESIDE: ContextVar[Mapping[int, list[KeyValue]]] = ContextVar("keys and values beside the rows")
"""By the id of an attention module. They cannot be passed as a keyword, because the layers of SigLIP drop those."""

Watch = Callable[[nn.Module, Tensor, Tensor, float | None], None]
"""Is called with an attention module, its queries (B, H, T, D), all keys (B, H, P + T, D), those of the image's own rows
last, and the scaling."""

WATCH: ContextVar[Watch | None] = ContextVar("what watches the attention", default=None)


@contextmanager
def beside_rows(extra: Mapping[int, list[KeyValue]]) -> Iterator[None]:
    """Within the block each layer attends to its own rows and to its keys and values in `extra`."""
    token = _BESIDE.set(extra)
    try:
        with frozen_linears():
            yield
    finally:
        _BESIDE.reset(token)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # what stands beside the rows differs by layer and batch
def attention_beside(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the rows and what stands beside them, without a mask: query, key, value (B, H, T, D) -> (B, T, H, D)."""
    beside = _BESIDE.get()[id(module)]
    if beside:
        count = len(query)
        key = torch.cat([*(k.to(key.dtype).expand(count, -1, -1, -1) for k, _ in beside), key], dim=2)
        value = torch.cat([*(v.to(value.dtype).expand(count, -1, -1, -1) for _, v in beside), value], dim=2)
    if (watch := WATCH.get()) is not None:
        watch(module, query, key, scaling)
    return attend(query, key, value, None, scaling, None).transpose(1, 2), None
