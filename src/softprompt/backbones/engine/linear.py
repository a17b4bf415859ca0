"""Products with frozen float32 weights by oneDNN, on a CPU with AVX-512.

PyTorch computes float32 products with MKL, which uses only AVX2 on AMD CPUs. With AVX-512, oneDNN is a third faster (AMD
EPYC, 2 threads, 870 x 576 x 1536: 202 against 153 GFLOP/s). Without it MKL is faster (151 against 128 backward): a whole
training step took 4.8 s with oneDNN and 3.8 s without. The function is the same, in another order of summation.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SMALLEST = 2**26  # multiplications; below this the detour costs more than it gains


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b, (..., in) x (out, in) -> (..., out)."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """A linear layer whose weight gets no gradient, so that backward is one product with the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(x.contiguous(), weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return _onednn(grads[0].contiguous(), weight.t()), None, None


class _FrozenLinears(TorchFunctionMode):
    """Intercepts F.linear with a large frozen float32 weight on the CPU; everything else runs as usual."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight = args[0], args[1]
            bias = args[2] if len(args) > 2 else None
            if (
                x.dtype == weight.dtype == torch.float32
                and x.device.type == "cpu"
                and not weight.requires_grad
                and (bias is None or not bias.requires_grad)
                and x.numel() * weight.shape[0] >= SMALLEST
            ):
                return _FrozenLinear.apply(x, weight, bias)
        return func(*args, **(kwargs or {}))


def frozen_linears() -> AbstractContextManager[Any]:
    """Within the block large products with frozen float32 weights on the CPU are computed by oneDNN, if that is faster."""
    return _FrozenLinears() if _is_faster() else nullcontext()


def _is_faster() -> bool:
    has_it = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_it and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
