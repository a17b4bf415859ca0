"""Similarity of prompts, retrieval, and sums of prompts as a start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.exchange import write_peft
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.protocols import cosine, proportional_weights, softmax_weights
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import FLOAT64


def prompt(backbone: CausalBackbone, tokens: Tensor) -> sp.TunedPrompt:
    module = VirtualTokens(tokens).requires_grad_(False)
    return sp.TunedPrompt(backbone, TASK, sp.PromptTuning(length=len(tokens)), module)


def tokens_of(tuned: sp.TunedPrompt) -> Tensor:
    return tuned.module.state_dict()["tokens"]


def test_per_token_similarity_is_the_mean_over_all_pairs() -> None:
    one, other = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    pairs = [float(a @ b / a.norm() / b.norm()) for a in one for b in other]
    assert cosine(one, other) == pytest.approx(sum(pairs) / 15, rel=FLOAT64)


def test_pooled_similarity_is_the_cosine_of_the_means() -> None:
    one, other = torch.randn(3, 8, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    a, b = one.sum(0) / 3, other.sum(0) / 5
    assert cosine(one, other, "pooled") == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=FLOAT64)
    assert cosine(one, one, "pooled") == pytest.approx(1)
    assert cosine(one, -3 * one, "pooled") == pytest.approx(-1)


@pytest.mark.parametrize("measure", ["per-token", "pooled"])
def test_similarity_does_not_depend_on_the_order_of_tokens(measure: str) -> None:
    one, other = torch.randn(4, 8), torch.randn(5, 8)
    shuffled = one[torch.tensor([2, 0, 3, 1])]
    assert cosine(shuffled, other, measure) == pytest.approx(cosine(one, other, measure), rel=FLOAT64)  # type: ignore[arg-type]


def test_sources_are_ranked_by_similarity_equal_ones_in_the_order_given(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    base, noise = torch.randn(4, 48), torch.randn(4, 48)
    target = prompt(backbone, base)
    near, far = prompt(backbone, base + 0.1 * noise), prompt(backbone, -base)
    folder = near.save(tmp_path / "near")
    ranked = sp.rank_sources(target, [far, folder, near], measure="pooled")
    assert [found.index for found in ranked] == [1, 2, 0]
    assert ranked[0].name == str(folder)
    assert ranked[0].similarity == ranked[1].similarity == sp.prompt_similarity(target, near, "pooled")
    assert ranked[2].similarity == pytest.approx(-1)
    assert [found.index for found in sp.rank_sources(target, [far, folder, near], top=1)] == [1]
    matrix = sp.similarity_matrix([target, near, far], "pooled")
    torch.testing.assert_close(matrix, matrix.T)
    torch.testing.assert_close(matrix.diagonal(), torch.ones(3, dtype=torch.float64))


def test_the_mean_of_one_prompt_is_that_prompt_and_of_two_their_mean() -> None:
    backbone = tiny_backbone()
    one, other = torch.randn(4, 48), torch.randn(4, 48)
    first, second = prompt(backbone, one), prompt(backbone, other)
    assert torch.equal(tokens_of(sp.combine_prompts([first], backbone, TASK)), one)
    mean = sp.combine_prompts([first, second], backbone, TASK)
    torch.testing.assert_close(tokens_of(mean), (one + other) / 2)
    weighted = sp.combine_prompts([first, second], backbone, TASK, [0.75, -0.5])
    torch.testing.assert_close(tokens_of(weighted), 0.75 * one - 0.5 * other)
    assert weighted.recipe["weights"] == [0.75, -0.5]


def test_weights_are_shares_of_the_similarities_or_their_softmax() -> None:
    assert proportional_weights([0.6, 0.2]) == pytest.approx([0.75, 0.25])
    weights = softmax_weights([0.5, -0.5], temperature=0.5)
    assert weights[0] / weights[1] == pytest.approx(torch.tensor(2.0).exp().item())
    assert softmax_weights([0.3, -0.3], temperature=1e9) == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="need numbers above zero"):
        proportional_weights([0.5, -0.1])


@pytest.mark.parametrize("method", ["prompt-tuning", "dept"])
def test_a_combined_prompt_is_saved_loaded_and_starts_another_one(tmp_path: Path, method: str) -> None:
    backbone = tiny_backbone()
    sources = [prompt(backbone, torch.randn(4, 48)) for _ in range(2)]
    combined = sp.combine_prompts(sources, backbone, TASK)
    folder = combined.save(tmp_path / "mean")
    assert sp.load(folder, backbone).predict(["film"]) == combined.predict(["film"])
    fresh = sp.methods()[method](length=4, init="prompt", init_prompt=folder)  # type: ignore[call-arg]
    tuned = sp.fit(backbone, TASK, fresh, ROWS, steps=1, learning_rate=1e-12, progress=False)
    torch.testing.assert_close(tuned.module.state_dict()["tokens"], tokens_of(combined))


def test_prompts_of_different_backbones_are_refused(tmp_path: Path) -> None:
    here, there = tiny_backbone(), tiny_backbone(seed=1)
    ours, theirs = prompt(here, torch.randn(4, 48)), prompt(there, torch.randn(4, 48))
    folder = theirs.save(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"different backbones.*differ in embedding table.*port_prompt"):
        sp.prompt_similarity(ours, folder)
    with pytest.raises(ValueError, match=r"theirs is of tiny/llama"):
        sp.combine_prompts([folder], here, TASK)
    write_peft(tmp_path / "p", torch.zeros(3, 32), base_model_name=None, num_layers=2, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"an unknown backbone, width 32 \(they differ in width\)"):
        sp.rank_sources(ours, [tmp_path / "p"])


def test_a_prompt_of_peft_is_a_source_whose_backbone_nobody_knows(tmp_path: Path) -> None:
    ours = prompt(tiny_backbone(), torch.randn(4, 48))
    folder = ours.export_peft(tmp_path / "p")
    assert sp.prompt_similarity(ours, folder, "pooled") == pytest.approx(1)


def test_prompts_that_are_more_than_virtual_tokens_are_refused_with_what_to_do(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    prefix = sp.fit(backbone, TASK, sp.PrefixTuning(length=2), ROWS, steps=1, progress=False)
    with pytest.raises(ValueError, match="a prefix-tuning prompt is more than virtual tokens, or none"):
        sp.rank_sources(prefix, [prefix])
    with pytest.raises(sp.PromptFileError, match="no virtual tokens"):
        sp.rank_sources(prefix.save(tmp_path / "prefix"), [prefix])
    for name in ("dept", "adept"):
        offset = sp.fit(backbone, TASK, sp.methods()[name](), ROWS, steps=1, progress=False)
        assert sp.prompt_similarity(offset, offset.save(tmp_path / name), "pooled") == pytest.approx(1)
        for source in (offset, tmp_path / name):
            with pytest.raises(ValueError, match="beside its virtual tokens, which would be lost"):
                sp.combine_prompts([source], backbone, TASK)


def test_words_that_were_searched_for_are_virtual_tokens_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    front = sp.TextClassification("{soft}\n{text} sentiment", labels={"neg": " bad", "pos": " good"})
    found = sp.fit(backbone, front, sp.TriggerSearch(length=2, top_k=2), ROWS, steps=1, progress=False)
    for source in (found, found.save(tmp_path / "found")):
        combined = sp.combine_prompts([source], backbone, TASK)
        assert torch.equal(tokens_of(combined), tokens_of(found))


def test_prompts_of_different_lengths_can_be_compared_and_not_summed() -> None:
    backbone = tiny_backbone()
    long, short = prompt(backbone, torch.randn(4, 48)), prompt(backbone, torch.randn(2, 48))
    assert -1 <= sp.prompt_similarity(long, short) <= 1
    with pytest.raises(ValueError, match=r"have \[4, 2\] virtual tokens: a sum needs equal lengths"):
        sp.combine_prompts([long, short], backbone, TASK)


@pytest.mark.parametrize("weights", [[1.0], [0.5, float("nan")], [0.3, 0.3, 0.4]])
def test_each_prompt_needs_one_finite_weight(weights: list[float]) -> None:
    backbone = tiny_backbone()
    sources = [prompt(backbone, torch.randn(4, 48)) for _ in range(2)]
    with pytest.raises(ValueError, match="for 2 prompts: each needs one finite number"):
        sp.combine_prompts(sources, backbone, TASK, weights)


def test_no_sources_is_an_error() -> None:
    backbone = tiny_backbone()
    with pytest.raises(ValueError, match="no source prompts were given"):
        sp.combine_prompts([], backbone, TASK)
    with pytest.raises(ValueError, match="no source prompts were given"):
        sp.rank_sources(prompt(backbone, torch.randn(4, 48)), [])
