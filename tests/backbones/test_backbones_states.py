"""Hidden states that a head reads: equal to plain concatenation, gradient included, wherever they stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import causal as naive
from tests.tiny.language import ARCHITECTURES, Architecture
from tests.tiny.task import tiny_backbone

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

# Read in the shared front (one place twice), in the row's own part, at its end, nowhere, out of order; label words too.
ROWS = [
    EncodedRow((-1, -2, -3, 20, 21, 30, 31), read=(6, 3)),
    EncodedRow((-1, -2, -3, 20, 21, 40), read=(4, 5)),
    EncodedRow((-1, -2, -3, 20, 21, 50, 51, 52, 53), read=(8, 0, 3)),
    EncodedRow((-1, -2, -3, 20, 21, 60, 61), read=()),
    EncodedRow((-1, -2, -3, 20, 21, 70), targets=((5,), (6, 7)), gold=0, read=(5,)),
]


def prompts(count: int = 1, length: int = 3) -> Tensor:
    """(G, P, d)"""
    return torch.randn(count, length, 48, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def pad(backbone: CausalBackbone) -> CausalBackbone:
    return CausalBackbone(backbone.model, backbone.tokenizer, name=backbone.name, packed=False)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_and_gradient_are_those_of_plain_concatenation(
    architecture: Architecture, packed: bool
) -> None:
    backbone = tiny_backbone(architecture)
    backbone = backbone if packed else pad(backbone)
    fast, slow = prompts().requires_grad_(), prompts().requires_grad_()
    offset = 0.1 * prompts(1, 5)
    found = backbone.states(ROWS, PromptOutput(tokens=fast, offset=offset))
    expected = torch.cat([naive.states(backbone.model, row, slow[0], offset[0]) for row in ROWS if row.read])
    assert found.shape == (8, 48)
    assert_close(found, expected, **CLOSE)
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    gradients = [torch.autograd.grad((f * weights).sum(), t)[0] for f, t in ((found, fast), (expected, slow))]
    assert_close(*gradients, **CLOSE)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_rows_of_several_prompts_are_read_together(packed: bool) -> None:
    backbone = tiny_backbone("qwen3")
    backbone = backbone if packed else pad(backbone)
    tokens = prompts(2)
    rows = [
        EncodedRow((-1, -2, -3, 20, 21), read=(4,)),
        EncodedRow((-1, 20, 30, 31), prompt=1, read=(3, 2)),
        EncodedRow((-1, -2, -3, 20, 22), read=(3, 4)),
        EncodedRow((20, -1, 33, 31), prompt=1, read=(0,)),
    ]
    found = backbone.states(rows, PromptOutput(tokens=tokens, lengths=torch.tensor([3, 1])))
    expected = torch.cat([naive.states(backbone.model, row, tokens[row.prompt]) for row in rows])
    assert_close(found, expected, **CLOSE)


def test_behind_a_compiled_prompt_the_states_are_the_same() -> None:
    backbone = tiny_backbone("llama")
    prompt = PromptOutput(tokens=prompts())
    rows = [EncodedRow(row.context, read=(len(row.context) - 1, 4)) for row in ROWS]
    compiled = backbone.compile(rows, prompt)
    assert compiled.heads == ((-1, -2, -3, 20),)  # not (..., 20, 21): keys and values cannot be read
    assert_close(backbone.states(rows, compiled), backbone.states(rows, prompt), **CLOSE)
    with pytest.raises(ValueError, match="compile it for these rows again"):
        backbone.states([EncodedRow((-1, -2, -3, 20, 21), read=(2, 4))], compiled)


def test_gradient_checkpointing_changes_no_state() -> None:
    backbone = tiny_backbone("llama")
    saving = backbone.with_settings(gradient_checkpointing=True)
    found = []
    for one in (backbone, saving):
        tokens = prompts().requires_grad_()
        states = one.states(ROWS, PromptOutput(tokens=tokens))
        found += [states, *torch.autograd.grad(states.square().sum(), tokens)]
    assert_close(found[2:], found[:2], **CLOSE)


def test_reading_leaves_the_model_as_it_was() -> None:
    backbone = tiny_backbone("gpt2")
    before = copy.deepcopy(backbone.model.state_dict())
    tokens = prompts().requires_grad_()
    backbone.states(ROWS, PromptOutput(tokens=tokens)).sum().backward()
    assert tokens.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert all(p.grad is None for p in backbone.model.parameters())
    assert backbone.model.config._attn_implementation == "sdpa"
