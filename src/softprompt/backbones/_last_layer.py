"""What the last layer need not compute: its feed-forward network for tokens whose logits nobody asks for.

Only attention mixes tokens, and behind the last attention there is none. Exact for every place that is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbones._attention import pick_tokens, place_tokens


@contextmanager
def last_mlp_only_at(model: PreTrainedModel, places: Tensor, size: int) -> Iterator[None]:
    """Within the block the last layer's `mlp` sees the tokens at `places` (U,), each once, of the `size` packed ones.

    The states of the other tokens are meaningless afterwards. Layers that name it otherwise compute all tokens.
    """
    mlp = _last_mlp(model)
    if mlp is None or len(places) == size:
        yield
        return

    def only_these(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args
        return pick_tokens(states, places), *rest  # (1, N, d) -> (1, U, d)

    def back_in_place(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # a mixture of experts gives its routing too
            return place_tokens(output[0], places, size), *output[1:]
        return place_tokens(output, places, size)  # (1, U, d) -> (1, N, d)

    handles = [mlp.register_forward_pre_hook(only_these), mlp.register_forward_hook(back_in_place)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _last_mlp(model: PreTrainedModel) -> nn.Module | None:
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    return mlp if isinstance(mlp, nn.Module) else None
