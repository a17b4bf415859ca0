"""ULPT: its formula, the projection that a seed makes again, its start."""

from __future__ import annotations

import pytest
import torch

from softprompt import ULPT
from softprompt.prompts.ulpt import ProjectedTokens
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import tiny_backbone


def projected(method: ULPT, seed: int = 0) -> ProjectedTokens:
    module = built(method, seed=seed)
    assert isinstance(module, ProjectedTokens)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("length", [1, 4])
def test_outputs_and_gradients_are_those_of_the_formula(length: int, rank: int) -> None:
    module = moved(projected(ULPT(length=length, rank=rank)))
    for rows in (rows_in_front(length), rows_around(length)):
        assert_equals_naive(module, lambda s: (naive.ulpt_tokens(s, s["projection"]), None, None), rows)


def test_the_projection_is_its_own_seed_s_whatever_the_run_s_is() -> None:
    one, two = projected(ULPT(rank=3), seed=0), projected(ULPT(rank=3), seed=1)
    assert torch.equal(one.projection, two.projection)
    assert not torch.equal(one.low, two.low)
    assert not torch.equal(one.projection, projected(ULPT(rank=3, projection_seed=1)).projection)


def test_a_checkpoint_holds_z_and_two_vectors() -> None:
    module = projected(ULPT(length=5, rank=3))
    assert {name: tuple(t.shape) for name, t in module.state_dict().items()} == {
        "low": (5, 3),
        "scale": (48,),
        "shift": (48,),
    }
    again = projected(ULPT(length=5, rank=3), seed=7)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.bake().state_dict()["tokens"], module.bake().state_dict()["tokens"])


def test_it_starts_at_the_scale_of_the_embedding_table() -> None:
    tokens = projected(ULPT(length=60, rank=16))().tokens
    assert tokens is not None
    assert 0.8 < tokens.std().item() / tiny_backbone().spec.embedding_std < 1.25


def test_each_of_the_three_has_its_own_learning_rate() -> None:
    method, spec = ULPT(length=4, rank=16), tiny_backbone().spec
    module = projected(method)
    groups = method.parameter_groups(module, method.learning_rate(spec))
    rates = {id(group["params"][0]): group["lr"] for group in groups}
    lr = 0.1 * spec.embedding_std
    assert rates == pytest.approx({id(module.low): lr / 4, id(module.scale): 0.1, id(module.shift): lr})
