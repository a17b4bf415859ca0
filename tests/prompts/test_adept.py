"""ADePT: its formula, its sizes, and words that are shifted alike wherever they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import ADePT, MixedPrompts, PromptTuning, TextGeneration, fit
from softprompt.outputs import EncodedRow
from softprompt.prompts.adept import ShortPromptWithNetwork, adept_rank
from tests.naive import causal as naive_causal
from tests.naive import prompts as naive
from tests.prompts.against_naive import assert_equals_naive, built, moved, rows_around, rows_in_front
from tests.tiny.task import ROWS, TASK, tiny_backbone


def parts(state: Any) -> Any:
    return state["tokens"], None, lambda word: naive.adept_offset(state, word)


@pytest.mark.parametrize("length", [1, 4])
def test_outputs_and_gradients_are_those_of_the_formula(length: int) -> None:
    module = moved(built(ADePT(length=length, rank=3)))
    assert_equals_naive(module, parts, rows_in_front(length))
    assert_equals_naive(module, parts, rows_around(length))


def test_it_starts_as_prompt_tuning() -> None:
    backbone, rows = tiny_backbone(), rows_in_front(4)
    adept, plain = built(ADePT(length=4, rank=3)), built(PromptTuning(length=4))
    with torch.no_grad():
        found, expected = (backbone.score(rows, module()).logits for module in (adept, plain))
    assert torch.equal(found, expected)


def test_a_folded_table_gives_the_same_as_computing_while_it_is_used() -> None:
    backbone = tiny_backbone(tied=True)
    module = moved(built(ADePT(length=3, rank=4), backbone))
    assert isinstance(module, ShortPromptWithNetwork)
    rows = rows_in_front(3)
    with torch.no_grad():
        output = module()
        assert output.tokens is not None
        found = backbone.next_token_logits(rows, output)
        table = backbone.table + module.token_offset(backbone.table)  # (V, d)
        for row, logits in zip(rows, found, strict=True):
            embeds = torch.cat([output.tokens[0], table[[atom for atom in row.context if atom >= 0]]])
            expected = backbone.model(inputs_embeds=embeds[None]).logits[0, -1]  # with the head as it was
            torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_generated_words_are_shifted_too() -> None:
    backbone = tiny_backbone()
    module = moved(built(ADePT(length=3, rank=4)))
    assert isinstance(module, ShortPromptWithNetwork)
    rows = [EncodedRow(row.context) for row in rows_in_front(3)]
    with torch.no_grad():
        output = module()
        assert output.tokens is not None
        found = backbone.generate(rows, output, max_new_tokens=5, do_sample=False, eos_token_id=-1)
        expected = [
            naive_causal.greedy(backbone.model, r.context, output.tokens[0], 5, None, module.token_offset)
            for r in rows
        ]
    assert found == expected


@pytest.mark.parametrize(("length", "rank"), [(60, 19), (40, 29)])
def test_the_rank_is_what_the_budget_leaves(length: int, rank: int) -> None:
    d = 768
    assert adept_rank(100, width=d, length=length) == rank
    assert length * d + 2 * d * rank + rank + d <= 100 * d < length * d + 2 * d * (rank + 1) + rank + 1 + d
    module = built(ADePT(length=4, budget=20))
    assert sum(p.numel() for p in module.parameters()) <= 20 * 48


def test_a_budget_that_leaves_no_rank_is_said_and_what_it_names_is_enough() -> None:
    with pytest.raises(ValueError, match="budget of 20 tokens: give a budget of 22 or more"):
        built(ADePT(length=18, budget=20))
    assert adept_rank(22, width=48, length=18) == 1


def test_there_are_two_learning_rates() -> None:
    module = built(ADePT(length=4, rank=2))
    first, second = ADePT().parameter_groups(module, 0.3)
    assert (first["lr"], len(first["params"])) == (0.3, 1)
    assert (second["lr"], len(second["params"])) == (pytest.approx(0.003), 4)
    assert ADePT(network_learning_rate=1e-4).parameter_groups(module, 0.3)[1]["lr"] == 1e-4


def test_it_stands_beside_prompts_without_network_in_one_batch_and_peft_refuses_it(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    task = TextGeneration("{text}", target=" {label}", max_new_tokens=4)
    adept = ADePT(length=3, rank=2, network_learning_rate=0.1)
    prompts = [
        fit(backbone, task, method, ROWS, steps=3, progress=False, learning_rate=0.3)
        for method in (adept, PromptTuning(length=2))
    ]
    texts = ["film again", "dog", "dog at night", "film"]
    mixed = MixedPrompts(prompts).predict(texts, [0, 1, 0, 1])
    assert mixed == [prompts[n].predict([text])[0] for text, n in zip(texts, [0, 1, 0, 1], strict=True)]
    tuned = fit(backbone, TASK, adept, ROWS, steps=1, progress=False)
    with pytest.raises(ValueError, match="PEFT has no format that holds one"):
        tuned.export_peft(tmp_path / "p")
