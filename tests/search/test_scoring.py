"""Losses of many prompts of words in one pass, and the gradient's guess at all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import TextClassification
from softprompt.search import (
    Vocabulary,
    candidate_losses,
    linearised_changes,
    prompt_gradient,
    searchable_words,
)
from tests.naive import triggers
from tests.search.problems import BEHIND, FRONT, PARTED, tiny_problem
from tests.tiny.language import Architecture

TASKS = {"front": FRONT, "behind": BEHIND, "parted": PARTED}


def drawn(count: int, length: int = 3) -> Tensor:
    return torch.randint(10, 300, (count, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("per_pass", [1, 3, 8])
def test_candidates_in_one_pass_have_the_losses_of_each_written_into_each_row(
    architecture: Architecture, task: TextClassification, per_pass: int
) -> None:
    problem = tiny_problem(task, architecture=architecture)
    candidates = drawn(4)
    found = candidate_losses(problem.backbone, problem.encoder, problem.rows, candidates, per_pass=per_pass)
    expected = torch.stack(
        [triggers.loss(problem.backbone, problem.rows, ids) for ids in candidates.tolist()]
    )
    assert found.dtype == torch.float64
    assert_close(found, expected.detach(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("task", [FRONT, BEHIND], ids=["front", "behind"])
def test_a_padded_model_gives_the_same_candidate_losses(task: TextClassification) -> None:
    from softprompt.backbones.causal.backbone import CausalBackbone

    problem = tiny_problem(task)
    packed = problem.backbone
    padded = CausalBackbone(packed.model, packed.tokenizer, packed=False)
    expected = candidate_losses(packed, problem.encoder, problem.rows, drawn(3))
    found = candidate_losses(padded, problem.encoder, problem.rows, drawn(3))
    assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])  # gemma scales what it embeds
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_gradient_is_that_of_plain_concatenation(architecture: Architecture, accumulation: int) -> None:
    problem = tiny_problem(PARTED, architecture=architecture)
    ids = drawn(1)[0]
    loss, gradient = prompt_gradient(
        problem.backbone, problem.encoder, problem.rows, ids, accumulation=accumulation
    )
    tokens = problem.backbone.spec.embed(ids).double().requires_grad_()
    expected = triggers.soft_loss(problem.backbone, problem.rows, tokens)
    expected.backward()
    assert tokens.grad is not None
    assert loss == pytest.approx(expected.item(), rel=1e-6)  # embeddings are handed over in float32
    assert_close(gradient.double(), tokens.grad, rtol=1e-4, atol=1e-7)


def test_a_linear_loss_changes_by_exactly_what_is_estimated() -> None:
    table = torch.randn(30, 5, dtype=torch.float64)
    slope = torch.randn(4, 5, dtype=torch.float64)
    words = Vocabulary(torch.arange(3, 30), table[3:], lambda ids: table[ids])

    def loss(ids: Tensor) -> Tensor:
        return (table[ids] * slope).sum()

    ids = torch.tensor([2, 7, 7, 29])
    changes = linearised_changes(slope, ids, words)
    assert changes.shape == (4, 27)
    for place in range(4):
        for i, word in enumerate(words.ids):
            other = ids.clone()
            other[place] = word
            assert_close(changes[place, i], loss(other) - loss(ids))


def test_the_estimate_is_the_slope_towards_another_word() -> None:
    problem = tiny_problem(FRONT, length=2)
    backbone = problem.backbone
    words = searchable_words(backbone)
    ids = torch.tensor([40, 50])
    _, gradient = prompt_gradient(backbone, problem.encoder, problem.rows, ids)
    changes = linearised_changes(gradient, ids, words)
    start = backbone.spec.embed(ids).double()
    step = 1e-6
    for place, word in ((0, 11), (1, 200), (1, 77)):
        end = start.clone()
        end[place] = backbone.spec.embed(words.ids[word : word + 1])[0].double()
        ahead, back = (
            triggers.soft_loss(backbone, problem.rows, start + sign * step * (end - start)).item()
            for sign in (1, -1)
        )
        assert changes[place, word].item() == pytest.approx((ahead - back) / (2 * step), rel=1e-4, abs=1e-6)


def test_the_words_scores_are_the_same_in_any_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from softprompt.search import words as module

    words = searchable_words(tiny_problem().backbone)
    vectors = torch.randn(3, 48)
    expected = words.dot(vectors), words.cosine(vectors)
    monkeypatch.setattr(module, "_CHUNK", 7)
    assert_close(words.dot(vectors), expected[0])
    assert_close(words.cosine(vectors), expected[1])
    assert_close(
        expected[1][0, 5], nn.functional.cosine_similarity(vectors[0], words.table[5].float(), dim=0)
    )
