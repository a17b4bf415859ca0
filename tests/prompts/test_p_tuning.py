"""P-tuning: its formula, soft tokens anywhere, the encoder that is dropped at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt import PTuning, TextClassification, fit
from softprompt.prompts.p_tuning import PromptEncoder
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import ROWS, TASK, tiny_backbone

ENCODERS: list[dict[str, Any]] = [
    {"encoder": "lstm"},
    {"encoder": "mlp"},
    {"encoder": "lstm", "hidden": 10},
    {"encoder": "mlp", "hidden": 7},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ENCODERS, ids=str)
@pytest.mark.parametrize("length", [1, 4])
def test_outputs_and_gradients_are_those_of_the_formula(length: int, settings: dict[str, Any]) -> None:
    module = moved(built(PTuning(length=length, **settings)))
    idle = "weight_hh" if length == 1 else "none"  # there is no state to come from
    for rows in (rows_in_front(length), rows_around(length)):
        assert_equals_naive(module, lambda s: (naive.p_tuning_tokens(s), None, None), rows, idle)


@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_it_starts_at_the_scale_of_the_embedding_table(encoder: Any) -> None:
    backbone = tiny_backbone()
    tokens = built(PTuning(length=6, encoder=encoder), backbone)().tokens
    assert tokens is not None
    assert tokens.std().item() == pytest.approx(backbone.spec.embedding_std)


def test_torch_s_own_generator_is_neither_used_nor_moved() -> None:
    before = torch.get_rng_state()
    one = built(PTuning(length=3), seed=4).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    two = built(PTuning(length=3), seed=4).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_virtual_tokens_stand_where_the_template_says_and_only_they_are_kept() -> None:
    task = TextClassification("{soft:2} {text} {soft:1} sentiment {soft}", labels=TASK.labels)
    tuned = fit(tiny_backbone(), task, PTuning(length=4), ROWS, ROWS, steps=20, batch_size=8, progress=False)
    context = tuned.encoder.encode(ROWS[0]).context
    kinds = "".join("." if atom >= 0 else str(-1 - atom) for atom in context)
    assert kinds.replace("..", ".") == "01.2.3"
    assert isinstance(tuned.module, VirtualTokens)
    assert list(tuned.module.state_dict()) == ["tokens"]
    assert tuned.recipe["trained_parameters"] > 4 * 48  # the encoder was trained, too


def test_the_default_learning_rate_falls_with_the_encoder_s_width() -> None:
    spec = tiny_backbone().spec
    assert PTuning().learning_rate(spec) == pytest.approx(1.2 / 48)
    assert PTuning(hidden=96).learning_rate(spec) == pytest.approx(1.2 / 96)


def test_an_odd_width_is_refused_for_two_directions_only() -> None:
    with pytest.raises(ValueError, match='hidden is 7 and encoder is "lstm"'):
        PTuning(hidden=7)
    module = built(PTuning(length=2, encoder="mlp", hidden=7))
    assert isinstance(module, PromptEncoder)
    assert module.lstm is None
