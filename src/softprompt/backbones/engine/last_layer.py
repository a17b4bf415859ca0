"""Leaving out the end of the last layer for tokens whose states nobody reads.

Only attention mixes tokens, so behind the last attention each token is on its own. The states that are read are exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbones.engine.attention import pick_tokens, place_tokens


class LayersRunAgainError(NotImplementedError):
    """The last layer ran more than once in a pass, as in a model that runs its layers in a loop: its end cannot be left out."""


class _Only:
    """The tokens that the end of the last layer computes in one pass.

    places  (U,) packed places, each once
    size    number of packed tokens
    """

    def __init__(self, places: Tensor, size: int) -> None:
        self.places, self.size = places, size
        self.was_begun = False

    def of(self, x: Any) -> Any:
        """(1, N, d) -> (1, U, d); anything else stays."""
        of_tokens = isinstance(x, Tensor) and x.dim() == 3 and x.shape[1] == self.size
        return pick_tokens(x, self.places) if of_tokens else x

    def back(self, output: Any) -> Any:
        """(1, U, d) -> (1, N, d)"""
        if isinstance(output, tuple):  # a mixture of experts returns its routing too
            return place_tokens(output[0], self.places, self.size), *output[1:]
        return place_tokens(output, self.places, self.size)


_ONLY: ContextVar[_Only | None] = ContextVar("tokens of the end of the last layer", default=None)


def make_shortened(view: nn.Module) -> None:
    """Let the last layer of a view be shortened by `last_layer_only_at`. Elsewhere it computes all tokens.

    If a layer gives the modules of its end other names, it always does.
    """
    end = _end_of_last_layer(view)
    if end is None:
        return
    first, last = end
    # An instance attribute hides the class's forward.
    first.forward = partial(_begin, first.forward)
    last.forward = partial(_finish, last.forward)


@contextmanager
def last_layer_only_at(places: Tensor, size: int) -> Iterator[None]:
    """Within the block the end of a view's last layer computes only some of the tokens.

    places  (U,) packed places of these tokens, each once
    size    number of packed tokens

    The end is the feed-forward network; in BERT and its relatives it begins at the output of attention. The states of the
    other tokens are meaningless. The layer that is run raises LayersRunAgainError when it is run a second time.
    """
    token = _ONLY.set(None if len(places) == size else _Only(places, size))
    try:
        yield
    finally:
        _ONLY.reset(token)


def _begin(forward: Any, *args: Any, **kwargs: Any) -> Any:
    only = _ONLY.get()
    if only is None:
        return forward(*args, **kwargs)
    if only.was_begun:
        raise LayersRunAgainError("the last layer runs more than once in a pass")
    only.was_begun = True
    return forward(*map(only.of, args), **kwargs)  # BERT passes the residual too


def _finish(forward: Any, *args: Any, **kwargs: Any) -> Any:
    only = _ONLY.get()
    output = forward(*args, **kwargs)
    return output if only is None else only.back(output)


def _end_of_last_layer(model: nn.Module) -> tuple[nn.Module, nn.Module] | None:
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
