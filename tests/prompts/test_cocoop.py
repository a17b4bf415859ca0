"""CoCoOp: a batch of images is one image at a time, each with its own context."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softprompt import CoCoOp, CoOp, ImageTextClassification, MixedPrompts, fit, load
from softprompt.binding import bind
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts import BuildContext, PromptModule
from softprompt.tasks.room import Room
from tests.backbones.dual.test_backbone_prompts import SOFT
from tests.naive import dual as naive
from tests.tiny.dual import DUALS, Dual, dual_backbone
from tests.tiny.vision import ROWS

TASK = ImageTextClassification(labels=["red", "blue"])
METHOD = CoCoOp(length=3, reduction=4)


def built(
    dual: Dual = "clip", method: CoCoOp = METHOD, task: ImageTextClassification = TASK
) -> tuple[PromptedModel, PromptModule, list[EncodedRow]]:
    """In float64, with three images."""
    backbone = dual_backbone(dual)
    generator = torch.Generator().manual_seed(3)
    module = method.build(BuildContext(backbone.spec, generator=generator)).double()
    encoder = bind(backbone, task, Room(length=module.length))
    return PromptedModel(backbone, [module]), module, [encoder.encode(row) for row in ROWS[:3]]


@pytest.mark.parametrize("position", SOFT)
@pytest.mark.parametrize("dual", DUALS)
def test_a_batch_gives_what_each_image_gives_alone_with_its_own_texts(dual: Dual, position: str) -> None:
    model, module, rows = built(dual, task=replace(TASK, soft_template=SOFT[position]))
    ours = model.score(rows).scores()
    (ours * torch.tensor([1.0, -2.0])).sum().backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    frozen, tokenizer = model.backbone.model, model.backbone.tokenizer
    weights = dict(module.named_parameters())
    expected = []
    for row in rows:
        assert row.media is not None
        image = naive.image_embedding(frozen, row.media, model.backbone.spec.image.rule)  # type: ignore[union-attr]
        hidden = torch.relu(weights["down.weight"] @ image + weights["down.bias"])
        context: Tensor = weights["context"] + weights["up.weight"] @ hidden + weights["up.bias"]
        texts = [[naive.text_embedding(frozen, tokenizer, text, context)] for text in row.targets]
        expected.append(naive.scores(frozen, image, texts))
    theirs = torch.stack(expected)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    (theirs * torch.tensor([1.0, -2.0])).sum().backward()
    for name, p in module.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-10)
        assert p.grad is not None
        assert p.grad.abs().max() > 0


def test_a_network_that_says_nothing_leaves_coops_context() -> None:
    model, module, rows = built()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.startswith("up"):
                p.zero_()
        found = model.score(rows).scores()
        context = module.state_dict()["context"]
        plain = CoOp(length=3).restore(model.backbone.spec, {"context": context[None]}).double()
        expected = PromptedModel(model.backbone, [plain]).score(rows).scores()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_an_image_is_seen_once_however_often_it_is_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, rows = built()
    seen: list[int] = []
    vision = model.backbone.vision  # type: ignore[attr-defined]
    states = type(vision).states

    def counted(self: object, rows: list[EncodedRow], prompt: object) -> Tensor:
        seen.append(len(rows))
        return states(self, rows, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(type(vision), "states", counted)
    model.score(rows)
    first = sum(seen)
    model.score(rows)
    assert sum(seen) == first


def test_at_clips_size_so_many_numbers_are_trained() -> None:
    spec = replace(dual_backbone().spec, width=512, embedding_width=512)
    module = CoCoOp(length=4).build(BuildContext(spec))
    assert sum(p.numel() for p in module.parameters()) == 35_360


def test_it_learns_is_saved_and_serves_other_classes(tmp_path: Path) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    method = CoCoOp(init_text="a film of a", reduction=4)
    tuned = fit(backbone, TASK, method, ROWS, steps=30, batch_size=8, progress=False)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tuned.save(tmp_path / "prompt")
    again = load(tmp_path / "prompt", backbone)
    pictures = [row["image"] for row in ROWS[:3]]
    assert again.predict(pictures) == tuned.predict(pictures)
    other = again.with_labels(["cat", "dog", "tree"])
    found = MixedPrompts([again, other]).predict(pictures, [0, 1, 0])
    assert found[1].probabilities == pytest.approx(other.predict(pictures[1:2])[0].probabilities, abs=1e-6)


def test_settings_that_cannot_be_meant_are_named() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        CoCoOp(length=4, init_text="a photo of a")
    with pytest.raises(ValueError, match="nothing would be left"):
        CoCoOp(reduction=21).build(BuildContext(dual_backbone().spec))
