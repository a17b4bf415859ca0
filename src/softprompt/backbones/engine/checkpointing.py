"""Gradient checkpointing of a frozen trunk.

The switch of transformers works only in training mode, which would turn on the dropout of the frozen model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Within = Callable[[], AbstractContextManager[Any]]

_WITHIN: ContextVar[Within | None] = ContextVar("what layers are computed again within", default=None)


def make_recomputable(view: nn.Module) -> None:
    """Let the layers of a view be computed again in backward within `checkpointed_layers`. Elsewhere they run as usual."""
    for layer in view.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            # An instance attribute hides the class's forward.
            layer.forward = partial(_forward, layer.forward)


@contextmanager
def checkpointed_layers(within: Within) -> Iterator[None]:
    """Within the block each recomputable layer keeps only its input for backward, which computes the layer again.

    within  makes the context in which it is computed, then as now: backward runs outside the caller's block
    """
    token = _WITHIN.set(within)
    try:
        yield
    finally:
        _WITHIN.reset(token)


def _forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    within = _WITHIN.get()
    if within is None:
        return forward(*args, **kwargs)

    def again(*args: Any, **kwargs: Any) -> Any:
        with within():
            return forward(*args, **kwargs)

    return checkpoint(again, *args, use_reentrant=False, **kwargs)
