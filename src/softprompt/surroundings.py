"""Independence from the settings that a caller has made in torch; threads draw global random numbers in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import RLock
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

A = ParamSpec("A")
R = TypeVar("R")

DRAWING = RLock()
"""The lock for drawing from torch's global generators: dropout in training, initial values, sampled words."""


@contextmanager
def own_generators(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Within the block only this thread draws from torch's global generators; afterwards their state is restored.

    devices  whose generators are meant, beside the CPU's
    """
    with DRAWING, torch.random.fork_rng(devices=list(devices)):
        yield


class Turns:
    """Random numbers of one training from torch's global generators, of which several trainings take turns.

    From turn to turn the generators go on as if nobody else had drawn from them. Between turns they are the caller's.
    """

    def __init__(self, device: torch.device) -> None:
        self.devices = [device] if device.type == "cuda" else []
        self._left: list[Tensor] = []

    @contextmanager
    def take(self) -> Iterator[None]:
        """Within the block no other thread has its turn."""
        with own_generators(self.devices):
            if self._left:
                cpu, *rest = self._left
                torch.default_generator.set_state(cpu)
                for device, state in zip(self.devices, rest, strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            rest = [torch.cuda.get_rng_state(device) for device in self.devices]
            self._left = [torch.default_generator.get_state(), *rest]


@contextmanager
def own_settings(*, gradients: bool = False) -> Iterator[None]:
    """Within the block torch's settings are the usual ones: float32, the CPU, no autocast, no inference mode.

    gradients  whether they are recorded; otherwise that stays as it is

    Nothing global is changed: torch has these settings for each thread, and tensors without a dtype get one here.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.set_grad_enabled(False))
        if gradients:
            stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if torch.get_default_dtype() != torch.float32:
            stack.enter_context(_Float32())
        yield


def undisturbed(function: Callable[A, R]) -> Callable[A, R]:
    """A function that runs with torch's usual settings, whatever the caller has set."""

    @wraps(function)
    def call(*args: A.args, **kwargs: A.kwargs) -> R:
        with own_settings():
            return function(*args, **kwargs)

    return call


def undisturbed_training(function: Callable[A, R]) -> Callable[A, R]:
    """A function that runs with torch's usual settings and records gradients, whatever the caller has set."""

    @wraps(function)
    def call(*args: A.args, **kwargs: A.kwargs) -> R:
        with own_settings(gradients=True):
            return function(*args, **kwargs)

    return call


_FILLED = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.linspace, torch.eye}
_OF_NUMBERS = {torch.tensor, torch.as_tensor, torch.full, torch.arange, torch.scalar_tensor}
_QUOTIENTS = {torch.div, torch.true_divide, Tensor.div, Tensor.true_divide, Tensor.__truediv__}


class _Float32(TorchFunctionMode):
    """Tensors that are made without a dtype, or from whole numbers by division, are float32 whatever torch's default is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") is not None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        if func in _FILLED:
            return func(*args, **{**kwargs, "dtype": torch.float32})
        found = func(*args, **kwargs)
        if not isinstance(found, Tensor) or found.dtype != torch.get_default_dtype():
            return found
        if func in _OF_NUMBERS and all(
            isinstance(x, bool | int | float | list | tuple) for x in (*args, kwargs.get("data", 0))
        ):
            return func(*args, **{**kwargs, "dtype": torch.float32})
        if func in _QUOTIENTS and not any(isinstance(x, Tensor) and x.is_floating_point() for x in args):
            return func(*(x.to(torch.float32) if isinstance(x, Tensor) else x for x in args), **kwargs)
        return found
