"""Gradient checkpointing of a frozen trunk.

The switch of transformers works only in training mode, which would turn on the dropout of the frozen model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbones.engine.attention import tree_implementation


@contextmanager
def checkpointed_layers(
    model: PreTrainedModel,
    implementation: Callable[[PreTrainedModel], AbstractContextManager[None]] = tree_implementation,
) -> Iterator[None]:
    """Within the block each layer keeps only its input for backward, which computes the layer again.

    model           whose layers are recomputed
    implementation  the context manager of the attention that the caller runs the model with
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]

    def recomputable(forward: Any, *args: Any, **kwargs: Any) -> Any:
        with implementation(model):  # backward runs outside the caller's block
            return forward(*args, **kwargs)

    try:
        for layer in layers:
            # An instance attribute hides the class's forward, and is gone when it is deleted.
            layer.forward = partial(checkpoint, partial(recomputable, layer.forward), use_reentrant=False)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)
