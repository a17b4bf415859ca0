"""RMS norms as one function: equal to transformers', and their own again behind the block."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from softprompt.backbones.engine.norms import frozen_norms, make_fast
from tests.tolerances import assert_equal_up_to_rounding


def is_one_function(norm: nn.Module) -> bool:
    """Whether the norm records one step for backward, where its own forward records several."""
    output = norm(torch.ones(1, 12, dtype=norm.weight.dtype, requires_grad=True))  # type: ignore[arg-type]
    return type(output.grad_fn).__name__ == "_FrozenRMSNormBackward"


def naive(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + eps)


def norm_and_rows(kind: type[nn.Module], dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    norm = kind(12, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.rand(12, generator=generator) + 0.5)
    rows = torch.randn(2, 5, 12, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(True)
    return norm, rows, torch.randn(2, 5, 12, generator=generator, dtype=torch.float64).to(dtype)


def test_output_and_gradient_are_the_formula_s() -> None:
    norm, x, grad = norm_and_rows(nn.RMSNorm, torch.float64)
    make_fast(norm)
    with frozen_norms():
        assert is_one_function(norm)
        found = norm(x)
    expected = naive(x, norm.weight, 1e-5)
    assert_equal_up_to_rounding(found, expected)
    for one, other in zip(
        torch.autograd.grad(found, x, grad), torch.autograd.grad(expected, x, grad), strict=True
    ):
        assert_equal_up_to_rounding(one, other)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_it_is_as_exact_as_the_model_s_own(dtype: torch.dtype, tolerance: float) -> None:
    norm, x, grad = norm_and_rows(LlamaRMSNorm, dtype)
    expected = norm(x)
    (slope,) = torch.autograd.grad(expected, x, grad)
    make_fast(norm)
    with frozen_norms():
        assert is_one_function(norm)
        found = norm(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(torch.autograd.grad(found, x, grad)[0], slope, rtol=tolerance, atol=tolerance)


def test_what_is_trained_or_is_another_norm_keeps_its_own_forward() -> None:
    trained = LlamaRMSNorm(12)
    gemma = Gemma3RMSNorm(12).requires_grad_(False)
    layer = nn.LayerNorm(12).requires_grad_(False)
    make_fast(nn.Sequential(trained, gemma, layer))
    with frozen_norms():
        assert not any(map(is_one_function, (trained, gemma, layer)))


def test_a_changed_instance_of_a_plain_class_keeps_its_own_forward() -> None:
    class Switched(LlamaRMSNorm):  # type: ignore[misc]  # transformers is untyped
        doubled = False

        def forward(self, x: Tensor) -> Tensor:
            normal: Tensor = super().forward(x)
            return 2 * normal if self.doubled else normal

    norms = nn.Sequential(Switched(12), Switched(12)).requires_grad_(False)
    norms[1].doubled = True
    make_fast(norms)
    with frozen_norms():
        assert [is_one_function(norm) for norm in norms] == [True, False]


def test_hooks_see_what_passes() -> None:
    norm, seen = LlamaRMSNorm(12).requires_grad_(False), []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    make_fast(nn.Sequential(norm))
    with frozen_norms():
        found = norm(torch.ones(1, 12))
    assert len(seen) == 1
    assert seen[0] is found


def test_behind_the_block_a_norm_is_its_own_again() -> None:
    norm = LlamaRMSNorm(12).requires_grad_(False)
    make_fast(nn.Sequential(norm))
    with pytest.raises(RuntimeError, match="stop"), frozen_norms():
        raise RuntimeError("stop")
    assert not is_one_function(norm)
