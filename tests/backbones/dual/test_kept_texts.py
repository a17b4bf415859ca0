"""Texts that neither prompt nor training changes are run once; the others are run in each step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from softprompt import VPT, BitFit, CoOp, fit
from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import Method
from tests.backbones.dual.test_backbone_prompts import noise, rows_of
from tests.tiny.dual import DUALS, TASK, TEXT_WIDTH, Dual, dual_backbone
from tests.tiny.vision import ROWS, WIDTH
from tests.tolerances import assert_equal_up_to_rounding


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Texts of each call of CLIP's text tower."""
    tower = type(dual_backbone("clip")._texts)
    embed, found = tower.embed, []

    def counted(self: object, texts: list[EncodedRow], prompt: PromptOutput) -> Tensor:
        found.append(len(texts))
        return embed(self, texts, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(tower, "embed", counted)
    return found


@pytest.mark.parametrize(
    ("method", "in_training", "in_evaluation"),
    [(VPT(length=2), 1, 0), (CoOp(length=2), 4, 1), (BitFit(), 4, 1)],
)
def test_texts_are_run_in_every_step_only_where_a_step_changes_them(
    method: Method, in_training: int, in_evaluation: int, run: list[int]
) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    task = TASK.with_labels(["red", "blue"])
    tuned = fit(backbone, task, method, ROWS, steps=4, batch_size=4, warmup=0, progress=False)
    assert len(run) == in_training
    tuned.evaluate(ROWS)
    assert len(run) - in_training == in_evaluation


def test_weights_that_are_changed_in_place_give_other_texts(run: list[int]) -> None:
    backbone = dual_backbone()
    rows = rows_of(backbone, "end", 0)
    first = backbone.score(rows, PromptOutput()).texts[0]
    assert backbone.score(rows, PromptOutput()).texts[0] is first
    with torch.no_grad():
        backbone.model.text_projection.weight.mul_(-1)  # type: ignore[union-attr, operator]
    torch.testing.assert_close(backbone.score(rows, PromptOutput()).texts[0], -first)
    assert run == [3, 3]
    backbone.model.text_model.requires_grad_(True)  # type: ignore[union-attr, operator]
    assert backbone.score(rows, PromptOutput()).texts[0].requires_grad
    other = [EncodedRow((), row.targets[:2], media=row.media) for row in rows]
    backbone.model.requires_grad_(False)
    assert len(backbone.score(other, PromptOutput()).texts[0]) == 2


@pytest.mark.parametrize("dual", DUALS)
def test_kept_texts_give_a_visual_prompt_the_gradient_that_texts_run_anew_give(dual: Dual) -> None:
    found = []
    for keeps in (True, False):
        backbone = dual_backbone(dual)
        if not keeps:
            backbone._kept_texts.serve = lambda prompt: False  # type: ignore[method-assign]
        tokens = noise(1, 2, WIDTH).requires_grad_()
        prompt = PromptOutput(vision=PromptOutput(tokens=tokens))
        rows = rows_of(backbone, "end", 0)
        for _ in range(2):
            tokens.grad = None
            scores = backbone.score(rows, prompt).scores()
            scores.square().sum().backward()
        found.append((scores.detach(), tokens.grad))
    assert_equal_up_to_rounding(*found)


def test_a_context_is_not_mistaken_for_texts_without_one() -> None:
    backbone: DualBackbone = dual_backbone()
    rows = rows_of(backbone, "end", 2)
    ours = [
        backbone.score(rows, PromptOutput(tokens=noise(1, 2, TEXT_WIDTH, seed=seed))).texts[0]
        for seed in (1, 2)
    ]
    assert not torch.allclose(*ours)
