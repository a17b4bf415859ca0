"""Packed rows behind a shared prompt against plain concatenation, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from softprompt.backbones.causal import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import causal as naive
from tests.tiny import ARCHITECTURES, tiny_causal_lm, tiny_tokenizer

P = 5


def backbone_of(architecture: str, **settings: object) -> CausalBackbone:
    model = tiny_causal_lm(architecture, **settings).requires_grad_(False)  # type: ignore[arg-type]
    return CausalBackbone(model, tiny_tokenizer())


def virtual_tokens(backbone: CausalBackbone, prompts: int = 1, length: int = P, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, length, backbone.spec.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def front(*ids: int, prompt: int = 0, length: int = P, targets: tuple[tuple[int, ...], ...] = ()) -> EncodedRow:
    return EncodedRow(tuple(-1 - k for k in range(length)) + ids, targets, prompt=prompt)


LABELS = ((40,), (41, 42), (41, 42, 43), (50, 51))
FRONT = [  # a shared opening, rows of unequal length, labels of unequal length
    front(20, 21, 30, targets=LABELS),
    front(20, 21, 31, 32, 33, 34, 35, 36, 37, 38, 39, 60, 61, 62, targets=LABELS),
    front(20, 21, 31, 32, 90, targets=LABELS),
]
INLINE = [
    EncodedRow((-1, -2, 20, 21, -3, -4, -5, 22), ((60, 61, 62),)),
    EncodedRow((-1, -2, 25, -3, -4, -5, 22), ((63,),)),
    EncodedRow((30, -1, -2, -3, -4, -5), ((63, 9),)),
]
FIRST_LABEL = [front(targets=((30, 31, 32, 33),)), front(targets=((30, 35),)), front(targets=((36,),))]
SINGLE = [front(20, 21, targets=LABELS)]
LONG = [front(*range(20, 20 + n), targets=((90, 91),)) for n in (30, 17, 1)]
LAYOUTS = {"front": FRONT, "inline": INLINE, "first label": FIRST_LABEL, "single row": SINGLE, "long": LONG}


def naive_tokens(backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None = None) -> Tensor:
    return torch.cat([
        naive.target_log_likelihood(backbone.model, row, t, tokens[row.prompt], None if offset is None else offset[row.prompt])
        for row in rows
        for t in row.targets
    ])  # fmt: skip


def assert_same(backbone: CausalBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None = None) -> None:
    leaves = [tokens] if offset is None else [tokens, offset]
    packed = backbone.score(rows, PromptOutput(tokens=tokens, offset=offset)).token_log_likelihoods()
    expected = naive_tokens(backbone, rows, tokens, offset)
    torch.testing.assert_close(packed, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((packed * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_rows_equal_plain_concatenation(architecture: str, layout: str) -> None:
    backbone = backbone_of(architecture)
    assert backbone.packed
    assert_same(backbone, LAYOUTS[layout], virtual_tokens(backbone))
