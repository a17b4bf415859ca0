"""Leaving out the end of the last layer for tokens whose states nobody reads.

Only attention mixes tokens, so behind the last attention each token is on its own. The states that are read are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbones.engine.attention import pick_tokens, place_tokens


@contextmanager
def last_layer_only_at(model: PreTrainedModel, places: Tensor, size: int) -> Iterator[None]:
    """Within the block the end of the last layer computes only some of the tokens.

    model   whose last layer it is
    places  (U,) packed places of these tokens, each once
    size    number of packed tokens

    The end is the feed-forward network; in BERT and its relatives it begins at the output of attention. The states of the
    other tokens are meaningless. If a layer gives these modules other names, all tokens are computed.
    """
    end = _end_of_last_layer(model)
    if end is None or len(places) == size:
        yield
        return
    first, last = end

    def only_these(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        # (1, N, d) -> (1, U, d); BERT passes the residual too
        return tuple(pick_tokens(x, places) if _is_of_tokens(x, size) else x for x in args)

    def back_in_place(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # a mixture of experts returns its routing too
            return place_tokens(output[0], places, size), *output[1:]
        return place_tokens(output, places, size)  # (1, U, d) -> (1, N, d)

    handles = [first.register_forward_pre_hook(only_these), last.register_forward_hook(back_in_place)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_of_tokens(x: Any, size: int) -> bool:
    return isinstance(x, Tensor) and x.dim() == 3 and x.shape[1] == size


def _end_of_last_layer(model: PreTrainedModel) -> tuple[nn.Module, nn.Module] | None:
    """The first and the last module of the end of the last layer. Both take one state for each token and return one."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        return None
    last = layers[-1]
    for name in ("mlp", "ffn"):  # DistilBERT's is called ffn
        if isinstance(mlp := getattr(last, name, None), nn.Module):
            return mlp, mlp
    before = getattr(getattr(last, "attention", None), "output", None)
    after = getattr(last, "output", None)
    if isinstance(before, nn.Module) and isinstance(after, nn.Module) and not hasattr(last, "crossattention"):
        return before, after
    return None
