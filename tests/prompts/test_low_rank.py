"""Decomposed prompt tuning: its formula, its rank, its start."""

from __future__ import annotations

import pytest
import torch

from softprompt import LowRankPromptTuning
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import tiny_backbone


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_outputs_and_gradients_are_those_of_the_formula(length: int, rank: int) -> None:
    module = moved(built(LowRankPromptTuning(length=length, rank=rank)))
    assert_equals_naive(module, lambda s: (naive.low_rank_tokens(s), None, None), rows_in_front(length))
    assert_equals_naive(module, lambda s: (naive.low_rank_tokens(s), None, None), rows_around(length))


@pytest.mark.parametrize("rank", [1, 10])
def test_the_product_starts_at_the_scale_of_the_embedding_table(rank: int) -> None:
    backbone = tiny_backbone()
    module = built(LowRankPromptTuning(length=60, rank=rank), backbone)
    tokens = module().tokens
    assert tokens is not None
    assert 0.8 < tokens.std().item() / backbone.spec.embedding_std < 1.25
    assert torch.linalg.matrix_rank(tokens[0]) == rank
    assert sum(p.numel() for p in module.parameters()) == 60 * rank + rank * 48


def test_the_default_learning_rate_is_a_twentieth_of_a_factor_s_scale() -> None:
    backbone = tiny_backbone()
    method = LowRankPromptTuning(length=60, rank=10)
    factor = built(method, backbone).state_dict()["right"].std().item()
    assert method.learning_rate(backbone.spec) == pytest.approx(0.05 * factor, rel=0.1)
