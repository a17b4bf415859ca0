"""Residual Prompt Tuning: its formula, and a start that is Prompt Tuning's."""

from __future__ import annotations

import pytest
import torch

from softprompt import PromptTuning, ResidualPromptTuning
from softprompt.prompts.residual import ResidualTokens
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import tiny_backbone


@pytest.mark.slow
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "one for each"])
@pytest.mark.parametrize("length", [1, 4])
def test_outputs_and_gradients_are_those_of_the_formula(length: int, shared: bool) -> None:
    module = moved(built(ResidualPromptTuning(length=length, bottleneck=16, shared=shared)))
    assert_equals_naive(module, lambda s: (naive.residual_tokens(s), None, None), rows_in_front(length))
    assert_equals_naive(module, lambda s: (naive.residual_tokens(s), None, None), rows_around(length))


def test_it_starts_as_prompt_tuning() -> None:
    residual, plain = built(ResidualPromptTuning(length=4))(), built(PromptTuning(length=4))()
    assert residual.tokens is not None
    assert plain.tokens is not None
    assert torch.equal(residual.tokens, plain.tokens)


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "one for each"])
def test_it_trains_as_many_numbers_as_the_formula_has(shared: bool) -> None:
    module = built(ResidualPromptTuning(length=4, bottleneck=16, shared=shared))
    mlps = 1 if shared else 4
    assert sum(p.numel() for p in module.parameters()) == 4 * 48 + mlps * 2 * 48 * 16 + 2 * 48


def test_the_matrices_have_a_learning_rate_of_their_own() -> None:
    spec, method = tiny_backbone().spec, ResidualPromptTuning(length=4)
    module = built(method)
    assert isinstance(module, ResidualTokens)
    tokens, matrices = method.parameter_groups(module, method.learning_rate(spec))
    assert tokens["lr"] == pytest.approx(0.1 * spec.embedding_std)
    assert matrices["lr"] == pytest.approx(0.4 / 48)
    assert {id(p) for p in matrices["params"]} == {id(module.down), id(module.up)}
