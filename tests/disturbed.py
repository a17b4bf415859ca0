"""Disturbed arithmetic, as on another CPU: the same sums in another order, and batches that are split elsewhere.

    pytest --disturb 1              # any whole number; each disturbs differently
    pytest --disturb 1 --threads 4

Kernels of the whole process, forward and backward, are replaced by ones that sum in reverse or in two halves, and that
compute the first rows of a batch differently from the last. Their results depend only on the shapes and the number: the same
call is bit-identical, as on one machine, and a row in another batch differs by rounding, as on some CPUs. A test that fails
under it asks for more than arithmetic promises.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

ASKED = "SOFTPROMPT_TESTS_DISTURB"
"""The environment variable by which processes that a test starts are disturbed like the test's own."""

_libraries: list[torch.library.Library] = []  # kernels stay replaced as long as these live


def disturb(seed: int) -> None:
    """Replace the kernels for the rest of this process. Raises RuntimeError where that was done with another seed."""
    if _libraries:
        if os.environ.get(ASKED) != str(seed):
            raise RuntimeError(f"arithmetic is disturbed by {os.environ.get(ASKED)} already, not {seed}")
        return
    os.environ[ASKED] = str(seed)
    kernels = _Kernels(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says once that a kernel is replaced, which is what we want
        for name, kernel in kernels.replaced().items():
            space, operator = name.split("::")
            library = torch.library.Library(space, "IMPL")
            library.impl(operator, kernel, "CPU", with_keyset=True, allow_override=True)
            _libraries.append(library)


class _Kernels:
    """What is put in the place of torch's kernels; `original` calls those."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kernels: dict[str, Any] = {}

    def replaced(self) -> dict[str, Callable[..., Any]]:
        """Operator name -> kernel."""
        found: dict[str, Callable[..., Any]] = {
            "aten::mm": self.mm,
            "aten::addmm": self.addmm,
            "aten::bmm": self.bmm,
            "aten::baddbmm": self.baddbmm,
            "aten::mv": self.mv,
            "aten::addmv": self.addmv,
            "aten::dot": self.dot,
            "aten::_softmax": self.along("aten::_softmax", 1, dim=1),
            "aten::_log_softmax": self.along("aten::_log_softmax", 1, dim=1),
            "aten::_softmax_backward_data": self.along("aten::_softmax_backward_data", 2, dim=2),
            "aten::_log_softmax_backward_data": self.along("aten::_log_softmax_backward_data", 2, dim=2),
            "aten::native_layer_norm": self.layer_norm,
            "aten::native_layer_norm_backward": self.layer_norm_backward,
            "aten::sum.dim_IntList": self.reduced("aten::sum.dim_IntList", 1),
            "aten::mean.dim": self.reduced("aten::mean.dim", 1),
            "aten::linalg_vector_norm": self.reduced("aten::linalg_vector_norm", 2),
            "aten::nll_loss_forward": self.nll_loss,
            "aten::convolution": self.convolution,
            "aten::convolution_backward": self.convolution_backward,
            "aten::index_add": self.index_add,
            "aten::embedding_dense_backward": self.embedding_backward,
            "aten::_scaled_dot_product_flash_attention_for_cpu": self.attention,
            "aten::_scaled_dot_product_flash_attention_for_cpu_backward": self.attention_backward,
        }
        if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            found["mkldnn::_linear_pointwise"] = self.linear_pointwise
        self.kernels = {name: torch.library.get_kernel(name, "CPU") for name in found}
        return found

    def original(self, name: str, keyset: Any, *args: Any, **options: Any) -> Any:
        return self.kernels[name].call_boxed(keyset, *args, **options)

    def drawn(self, *about: Any) -> int:
        """A number that depends on the seed and the shapes alone."""
        return zlib.crc32(repr((self.seed, *about)).encode())

    def turns(self, x: Tensor) -> bool:
        """Whether a batch of this shape is summed in reverse: one of another number of rows may be not."""
        return self.drawn(tuple(x.shape)) % 4 > 0

    # Products

    def product(self, name: str, keyset: Any, a: Tensor, b: Tensor) -> Tensor:
        """a (..., M, K) times b (..., K, N): of some rows of a summed in reverse, of the others in two halves."""
        inner = a.shape[-1]
        if not a.is_floating_point() or inner < 2 or a.numel() == 0 or b.numel() == 0:
            return self.original(name, keyset, a, b)
        dtype = a.dtype
        if dtype in (torch.float16, torch.bfloat16):  # which CPUs sum in float32
            a, b = a.float(), b.float()
        drawn = self.drawn(tuple(a.shape), tuple(b.shape))
        split, middle = drawn % (a.shape[-2] + 1), 1 + drawn // 7 % (inner - 1)
        parts = []
        if split:
            parts.append(self.original(name, keyset, a[..., :split, :].flip(-1), b.flip(-2)))
        if split < a.shape[-2]:
            rest = a[..., split:, :]
            first = self.original(name, keyset, rest[..., middle:], b[..., middle:, :])
            parts.append(first + self.original(name, keyset, rest[..., :middle], b[..., :middle, :]))
        return torch.cat(parts, dim=-2).to(dtype)

    def mm(self, keyset: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.product("aten::mm", keyset, a, b)

    def bmm(self, keyset: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.product("aten::bmm", keyset, a, b)

    def addmm(
        self, keyset: Any, added: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1
    ) -> Tensor:
        return _plus(added, self.mm(keyset, a, b), beta, alpha)

    def baddbmm(
        self, keyset: Any, added: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1
    ) -> Tensor:
        return _plus(added, self.bmm(keyset, a, b), beta, alpha)

    def mv(self, keyset: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.product("aten::mm", keyset, a, b[:, None])[:, 0]

    def addmv(
        self, keyset: Any, added: Tensor, a: Tensor, b: Tensor, beta: Any = 1, alpha: Any = 1
    ) -> Tensor:
        return _plus(added, self.mv(keyset, a, b), beta, alpha)

    def dot(self, keyset: Any, a: Tensor, b: Tensor) -> Tensor:
        return self.original("aten::dot", keyset, a.flip(0), b.flip(0))

    def linear_pointwise(
        self, keyset: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *activation: Any
    ) -> Tensor:
        """What the detour of `backbones.engine.linear` calls: the inputs in reverse for some of the rows."""
        name, weight = "mkldnn::_linear_pointwise", weight.contiguous()
        rows = x.reshape(-1, x.shape[-1])
        split = self.drawn(tuple(x.shape), tuple(weight.shape)) % (len(rows) + 1)
        parts = []
        if split:
            turned = rows[:split].flip(-1).contiguous(), weight.flip(-1).contiguous()
            parts.append(self.original(name, keyset, *turned, bias, *activation))
        if split < len(rows):
            parts.append(self.original(name, keyset, rows[split:].contiguous(), weight, bias, *activation))
        return torch.cat(parts).reshape(*x.shape[:-1], -1)

    def convolution(self, keyset: Any, x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        """Channels in reverse. rest: bias, stride, padding, dilation, transposed, output_padding, groups"""
        if rest[6] == 1 and not rest[4] and self.turns(x):
            x, weight = x.flip(1), weight.flip(1)
        return self.original("aten::convolution", keyset, x, weight, *rest)

    def convolution_backward(
        self, keyset: Any, grad: Tensor, x: Tensor, weight: Tensor, biases: Any, *rest: Any
    ) -> Any:
        """Rows in reverse, which the weight's gradient sums over, and the output's channels, which the input's does.

        rest: stride, padding, dilation, transposed, output_padding, groups, which gradients are wanted
        """
        name = "aten::convolution_backward"
        if rest[3] or rest[5] != 1 or not self.turns(x):
            return self.original(name, keyset, grad, x, weight, biases, *rest)
        turned = grad.flip(0, 1), x.flip(0), weight.flip(0)
        for_x, for_weight, for_bias = self.original(name, keyset, *turned, biases, *rest)
        return (
            None if for_x is None else for_x.flip(0),
            None if for_weight is None else for_weight.flip(0),
            None if for_bias is None else for_bias.flip(0),
        )

    def nll_loss(
        self, keyset: Any, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignored: int
    ) -> Any:
        if x.dim() == 2 and reduction:
            x, target = x.flip(0), target.flip(0)
        return self.original("aten::nll_loss_forward", keyset, x, target, weight, reduction, ignored)

    # Sums

    def along(self, name: str, tensors: int, dim: int) -> Callable[..., Tensor]:
        """A kernel whose first tensors are turned round along the dimension that is its argument number `dim`."""

        def kernel(keyset: Any, *args: Any) -> Tensor:
            axis = args[dim]
            if not args[0].dim() or not self.turns(args[0]):
                return self.original(name, keyset, *args)
            turned = [tensor.flip(axis) for tensor in args[:tensors]]
            return self.original(name, keyset, *turned, *args[tensors:]).flip(axis)

        return kernel

    def reduced(self, name: str, dim: int) -> Callable[..., Tensor]:
        """A kernel that sums over the dimensions that are its argument number `dim`: in reverse."""

        def kernel(keyset: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
            given = args[dim - 1] if len(args) >= dim else None
            axes: Sequence[int] = given or [*range(x.dim())]
            turned = x.flip(list(axes)) if x.is_floating_point() and x.dim() and self.turns(x) else x
            return self.original(name, keyset, turned, *args, **options)

        return kernel

    def index_add(
        self, keyset: Any, x: Tensor, dim: int, index: Tensor, source: Tensor, **options: Any
    ) -> Tensor:
        turned = (index.flip(0), source.flip(dim)) if index.dim() and source.dim() else (index, source)
        return self.original("aten::index_add", keyset, x, dim, *turned, **options)

    def embedding_backward(self, keyset: Any, grad: Tensor, index: Tensor, *rest: Any) -> Tensor:
        places = range(index.dim())
        return self.original(
            "aten::embedding_dense_backward", keyset, grad.flip(list(places)), index.flip(list(places)), *rest
        )

    # Norms

    def layer_norm(
        self,
        keyset: Any,
        x: Tensor,
        shape: Sequence[int],
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Any:
        axes = [*range(-len(shape), 0)] if self.turns(x) else []
        turned = [None if one is None else one.flip(axes) for one in (weight, bias)]
        out, *moments = self.original("aten::native_layer_norm", keyset, x.flip(axes), shape, *turned, eps)
        return out.flip(axes), *moments

    def layer_norm_backward(
        self,
        keyset: Any,
        grad: Tensor,
        x: Tensor,
        shape: Sequence[int],
        mean: Tensor,
        scale: Tensor,
        *rest: Any,
    ) -> Any:
        axes = [*range(-len(shape), 0)] if self.turns(x) else []
        weight, bias, wanted = rest
        turned = [None if one is None else one.flip(axes) for one in (weight, bias)]
        found = self.original(
            "aten::native_layer_norm_backward",
            keyset, grad.flip(axes), x.flip(axes), shape, mean, scale, *turned, wanted,
        )  # fmt: skip
        return tuple(None if one is None else one.flip(axes) for one in found)

    # Attention

    def attention(
        self, keyset: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0, causal: bool = False,
        *, attn_mask: Tensor | None = None, scale: float | None = None,
    ) -> Any:  # fmt: skip
        """Keys in reverse. q (B, H, T, D), k and v (B, H, S, D)"""
        name = "aten::_scaled_dot_product_flash_attention_for_cpu"
        if not self.turns(q):
            return self.original(name, keyset, q, k, v, dropout, causal, attn_mask=attn_mask, scale=scale)
        mask = _turned_mask(q, k, causal, attn_mask)
        return self.original(
            name, keyset, q, k.flip(2), v.flip(2), dropout, False, attn_mask=mask, scale=scale
        )

    def attention_backward(
        self, keyset: Any, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor,
        dropout: float, causal: bool, *, attn_mask: Tensor | None = None, scale: float | None = None,
    ) -> Any:  # fmt: skip
        name = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
        if not self.turns(q):
            return self.original(
                name, keyset, grad, q, k, v, out, sums, dropout, causal, attn_mask=attn_mask, scale=scale
            )
        mask = _turned_mask(q, k, causal, attn_mask)
        found = self.original(
            name,
            keyset,
            grad,
            q,
            k.flip(2),
            v.flip(2),
            out,
            sums,
            dropout,
            False,
            attn_mask=mask,
            scale=scale,
        )
        return found[0], found[1].flip(2), found[2].flip(2)


def _plus(added: Tensor, product: Tensor, beta: Any, alpha: Any) -> Tensor:
    product = product * alpha if alpha != 1 else product
    if beta == 0:  # then what is not finite in it does not count
        return product
    return product + (added * beta if beta != 1 else added)


def _turned_mask(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> Tensor | None:
    if causal:
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = torch.zeros_like(seen, dtype=q.dtype).masked_fill_(~seen, float("-inf"))
    if mask is None or mask.shape[-1] == 1:
        return mask
    return mask.flip(-1)
