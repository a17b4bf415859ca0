"""DePT: its formula, its sizes, its start, and where the offset stands."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt import DePT, MixedPrompts, PromptTuning, fit, load
from softprompt.outputs import EncodedRow
from softprompt.prompts.dept import ShortPromptWithOffset, dept_sizes
from tests.naive import causal as naive_causal
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding


def parts(state: Any) -> Any:
    return state["tokens"], naive.dept_offset(state), None


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("positions", [2, 5, 30], ids=["shorter", "between", "longer"])
def test_outputs_and_gradients_are_those_of_the_formula(length: int, positions: int) -> None:
    module = moved(built(DePT(length=length, rank=3, positions=positions)))
    assert_equals_naive(module, parts, rows_in_front(length))
    assert_equals_naive(module, parts, rows_around(length))


def test_it_starts_as_prompt_tuning() -> None:
    backbone, rows = tiny_backbone(), rows_in_front(4)
    dept, plain = built(DePT(length=4, rank=3)), built(PromptTuning(length=4))
    with torch.no_grad():
        found, expected = (backbone.score(rows, module()).logits for module in (dept, plain))
    assert torch.equal(found, expected)


def test_a_starts_uniform_and_b_at_zero() -> None:
    module = built(DePT(length=4, rank=16, positions=200))
    assert isinstance(module, ShortPromptWithOffset)
    bound = 1 / math.sqrt(16)  # Kaiming's with a = sqrt(5) and a fan-in of r
    assert 0.95 * bound < module.offset_a.abs().max() <= bound
    assert module.offset_b.abs().max() == 0
    assert tuple(module.offset_b.shape) == (16, 48)


def left_padded_logits(rows: list[EncodedRow], tokens: Tensor, offset: Tensor) -> Tensor:
    """After each row's context, in a batch that is padded on the left, the dense way: (B, V)."""
    model = tiny_backbone().model
    embeds = [naive_causal.embed(model, row.context, tokens, offset) for row in rows]
    longest = max(map(len, embeds))
    batch = torch.stack([torch.nn.functional.pad(e, (0, 0, longest - len(e), 0)) for e in embeds])
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in embeds])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return model(inputs_embeds=batch, attention_mask=mask, position_ids=positions).logits[:, -1]


def test_the_offset_follows_the_text_whatever_the_padding_is() -> None:
    backbone, rows = tiny_backbone(), rows_in_front(3)
    module = moved(built(DePT(length=3, rank=2, positions=6)))
    with torch.no_grad():
        output = module()
        assert output.tokens is not None
        assert output.offset is not None
        found = backbone.next_token_logits(rows, output)
        expected = left_padded_logits(rows, output.tokens[0], output.offset[0])
        alone = torch.cat([backbone.next_token_logits([row], output) for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, alone, rtol=1e-10, atol=1e-10)


def test_heads_read_states_of_shifted_words() -> None:
    backbone = tiny_backbone()
    rows = [replace(row, targets=(), read=(len(row.context) - 1,)) for row in rows_in_front(3)]
    with torch.no_grad():
        output = moved(built(DePT(length=3, rank=2, positions=6)))()
        assert output.tokens is not None
        assert output.offset is not None
        found = backbone.states(rows, output)
        for row, state in zip(rows, found, strict=True):
            embeds = naive_causal.embed(backbone.model, row.context, output.tokens[0], output.offset[0])
            expected = backbone.model.base_model(inputs_embeds=embeds[None]).last_hidden_state[0, -1]
            torch.testing.assert_close(state, expected, rtol=1e-10, atol=1e-10)


def test_layers_that_are_computed_again_in_backward_give_the_same_gradients() -> None:
    module, backbone = moved(built(DePT(length=3, rank=2, positions=6))), tiny_backbone()
    gradients = []
    for checkpointing in (False, True):
        own = backbone.with_settings(gradient_checkpointing=checkpointing)
        loss = own.score(rows_in_front(3), module()).token_log_likelihoods().sum()
        gradients.append(torch.autograd.grad(loss, list(module.parameters())))
    assert_equal_up_to_rounding(*gradients)


def test_text_beyond_the_offset_gets_none_and_unused_rows_no_gradient() -> None:
    backbone = tiny_backbone()
    module = built(DePT(length=2, rank=3, positions=40))
    assert isinstance(module, ShortPromptWithOffset)
    with torch.no_grad():
        module.offset_b.add_(0.1)
    backbone.score(rows_in_front(2), module()).token_log_likelihoods().sum().backward()
    assert module.offset_a.grad is not None
    fed = 7 + 2  # the longest text, and all of the longest label but its last token
    assert module.offset_a.grad[:fed].abs().amin(dim=1).min() > 0
    assert module.offset_a.grad[fed:].abs().max() == 0


def test_by_default_positions_and_rank_come_from_the_rows_and_the_budget() -> None:
    module = built(DePT(length=4, budget=8))
    assert isinstance(module, ShortPromptWithOffset)
    assert len(module.offset_a) == 7 + 2
    assert len(module.offset_b) == 4 * 48 // (9 + 48)
    assert sum(p.numel() for p in module.parameters()) <= 8 * 48


@pytest.mark.parametrize(
    ("budget", "positions", "length", "rank", "numbers"),
    [
        (100, 256, 20, 60, 76_800),
        (100, 256, 40, 45, 76_800),
        (100, 256, 60, 30, 76_800),
        (100, 256, 80, 15, 76_800),
        (100, 512, 60, 24, 76_800),
        (100, 348, 60, 27, 76_212),
    ],
)
def test_the_paper_s_sizes_are_solved_for(
    budget: int, positions: int, length: int, rank: int, numbers: int
) -> None:
    by_length = dept_sizes(budget, width=768, positions=positions, length=length)
    assert (by_length.rank, by_length.parameters) == (rank, numbers)
    by_rank = dept_sizes(budget, width=768, positions=positions, rank=rank)
    assert (by_rank.length, by_rank.positions) == (length, positions)


def test_sizes_never_exceed_the_budget_and_leave_less_than_one_rank_or_token() -> None:
    for width in (1, 48, 50):
        for positions in (1, 9, 200):
            for budget in (20, 64):
                sizes = dept_sizes(budget, width=width, positions=positions, rank=1) if width > 1 else None
                if sizes is not None:
                    assert budget * width - width < sizes.parameters <= budget * width
                    again = dept_sizes(budget, width=width, positions=positions, length=sizes.length)
                    assert budget * width - (positions + width) < again.parameters <= budget * width


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 20}, r"20 virtual tokens leave 0 .* 960 numbers .* takes 57: give a budget of 22"),
        ({"length": 19}, r"leave 48 .* give a budget of 21"),
        ({"rank": 17}, "an offset of rank 17 on 9 positions takes 969 numbers"),
        ({}, "give either length or rank"),
        ({"length": 2, "rank": 2}, "give either length or rank"),
        ({"length": 2, "positions": 0}, "sizes must be 1 or more"),
    ],
)
def test_a_budget_that_does_not_suffice_is_said(settings: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dept_sizes(20, **{"width": 48, "positions": 9, **settings})


def test_the_least_budget_that_an_error_names_is_enough() -> None:
    assert dept_sizes(22, width=48, positions=9, length=20).rank == 1
    with pytest.raises(ValueError, match="give a budget of 22"):
        dept_sizes(21, width=48, positions=9, length=20)


def test_there_are_two_learning_rates() -> None:
    module = built(DePT(length=4, rank=2))
    assert isinstance(module, ShortPromptWithOffset)
    first, second = DePT(length=4, rank=2).parameter_groups(module, 0.3)
    assert (first["lr"], [id(p) for p in first["params"]]) == (0.3, [id(module.tokens)])
    assert second["lr"] == pytest.approx(0.003)
    assert {id(p) for p in second["params"]} == {id(module.offset_a), id(module.offset_b)}
    assert DePT(offset_learning_rate=1e-4).parameter_groups(module, 0.3)[1]["lr"] == 1e-4


def test_a_source_prompt_brings_its_offset(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    source = fit(backbone, TASK, DePT(length=3, rank=2), ROWS, steps=3, progress=False)
    folder = source.save(tmp_path / "source")
    module = built(DePT(length=3, init="prompt", init_prompt=folder))
    for name, tensor in source.module.state_dict().items():
        assert torch.equal(module.state_dict()[name], tensor)
    with pytest.raises(
        ValueError, match=r"has an offset of \(positions, rank\) = \(\d+, 2\), and the settings ask for"
    ):
        built(DePT(length=3, rank=5, init="prompt", init_prompt=folder))
    plain = fit(backbone, TASK, PromptTuning(length=3), ROWS, steps=1, progress=False)
    module = built(DePT(length=2, rank=2, init="prompt", init_prompt=plain.save(tmp_path / "plain")))
    assert torch.equal(module.state_dict()["tokens"], plain.module.state_dict()["tokens"][:2])
    assert module.state_dict()["offset_b"].abs().max() == 0


def test_it_stands_beside_prompts_without_offset_in_one_batch() -> None:
    backbone = tiny_backbone()
    prompts = [
        fit(backbone, TASK, method, ROWS, steps=3, progress=False, learning_rate=0.3)
        for method in (DePT(length=3, rank=2, offset_learning_rate=0.1), PromptTuning(length=2))
    ]
    texts = ["film again", "dog", "dog at night", "film"]
    mixed = MixedPrompts(prompts).predict(texts, [0, 1, 0, 1])
    for text, n, found in zip(texts, [0, 1, 0, 1], mixed, strict=True):
        [alone] = prompts[n].predict([text])
        assert_equal_up_to_rounding(found, alone)


def test_it_cannot_be_given_to_peft_and_says_why(tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(), TASK, DePT(length=3, rank=2), ROWS, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"dept adds an offset .* PEFT has no format that holds one"):
        tuned.export_peft(tmp_path / "p")
    again = load(tuned.save(tmp_path / "ours"), tuned.backbone)
    assert again.predict(["film"]) == tuned.predict(["film"])
