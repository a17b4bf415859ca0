"""Frozen float32 products by oneDNN: the same numbers as the usual ones, up to the order of summation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from softprompt.backbones.engine import linear as _linear
from softprompt.outputs import PromptOutput
from tests.backbones.causal.test_backbone import FRONT, backbone_of, virtual_tokens


@pytest.fixture
def every_size(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Products of any size take the detour, on any CPU; gives how often it was taken."""
    taken: list[int] = []
    plain = _linear._onednn

    def counted(*args: torch.Tensor) -> torch.Tensor:
        taken.append(1)
        return plain(*args)

    monkeypatch.setattr(_linear, "SMALLEST", 0)
    monkeypatch.setattr(_linear, "_is_faster", lambda: True)
    monkeypatch.setattr(_linear, "_onednn", counted)
    return taken


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma3_text"])
def test_output_and_gradient_are_the_usual_ones(
    architecture: str, checkpointing: bool, every_size: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = backbone_of(architecture, dtype=torch.float32).with_settings(
        gradient_checkpointing=checkpointing
    )
    tokens = virtual_tokens(backbone).detach().float().requires_grad_()
    assert backbone.packed

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        found = backbone.score(FRONT, PromptOutput(tokens=tokens)).token_log_likelihoods()
        return found, torch.autograd.grad(found.sum(), tokens)[0]

    every_size.clear()
    found, gradient = run()
    assert every_size
    monkeypatch.setattr(_linear, "SMALLEST", 2**60)
    every_size.clear()
    expected, expected_gradient = run()
    assert not every_size
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient, expected_gradient, rtol=1e-4, atol=1e-4 * float(expected_gradient.abs().max())
    )


def test_a_weight_that_is_trained_keeps_its_gradient(every_size: list[int]) -> None:
    weight = torch.randn(3, 4, requires_grad=True)
    x = torch.randn(2, 4, requires_grad=True)
    with _linear.frozen_linears():
        F.linear(x, weight).sum().backward()
    assert not every_size
    assert weight.grad is not None
    assert x.grad is not None
