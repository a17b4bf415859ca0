"""CoOp: contexts that start from words or noise, for all classes or for each its own."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softprompt import (
    BitFit,
    CoOp,
    DePT,
    Domain,
    FullTuning,
    ImageTextClassification,
    LoRA,
    MixedPrompts,
    PromptTuning,
    ZeroShot,
    evaluate_domains,
    fit,
    load,
)
from softprompt.binding import bind
from softprompt.inspection.images import inspect_images
from softprompt.inspection.virtual_tokens import inspect_prompt
from softprompt.outputs import PromptOutput
from softprompt.prompts import BuildContext, Method
from softprompt.tasks.room import Room
from tests.tiny.dual import TEXT_WIDTH, dual_backbone
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.vision import ROWS

TASK = ImageTextClassification(labels=["red", "blue"], template="a picture of a {}.")
LABELS = {"red": ("red",), "blue": ("blue",)}


@pytest.mark.parametrize(
    ("soft", "words", "plain"),
    [
        ("{soft} {}.", "a film of a", "a film of a {}."),
        ("{soft:2} {}{soft}.", "a film of a", "a film {} of a."),
        ("{}{soft}.", " film of", "{} film of."),
    ],
)
def test_a_context_of_words_is_the_plain_sentence(soft: str, words: str, plain: str) -> None:
    backbone = dual_backbone()
    module = CoOp(init_text=words).build(BuildContext(backbone.spec))
    embedded = []
    for task, length, prompt in (
        (replace(TASK, soft_template=soft), module.length, module()),
        (replace(TASK, template=plain), 0, PromptOutput()),
    ):
        row = bind(backbone, task, Room(length=length)).encode(ROWS[0])
        embedded.append(backbone.score([row], prompt).texts[0])
    torch.testing.assert_close(embedded[0], embedded[1], rtol=1e-6, atol=1e-7)


def test_the_context_starts_from_noise_of_the_papers_spread() -> None:
    context = BuildContext(dual_backbone().spec, LABELS, generator=torch.Generator().manual_seed(0))
    module = CoOp(length=400).build(context)
    assert module.context.shape == (1, 400, TEXT_WIDTH)
    assert module.context.std().item() == pytest.approx(0.02, rel=0.05)
    assert CoOp().build(context).length == 16


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [CoOp(length=3), CoOp(length=3, class_specific=True), CoOp(init_text="a photo")]
)
def test_the_context_learns_and_nothing_else_moves(method: CoOp, tmp_path: Path) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, TASK, method, ROWS, steps=40, batch_size=8, progress=False)
    zero = fit(backbone, TASK, ZeroShot(), ROWS, progress=False)
    rows = [zero.encoder.encode(row) for row in ROWS]
    start = zero.encoder.loss(zero.model.score(rows), rows).mean()
    rows = [tuned.encoder.encode(row) for row in ROWS]
    assert tuned.encoder.loss(tuned.model.score(rows), rows).mean() < start
    assert list(tuned.trained()) == ["prompt.context"]
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="compares images with texts"):
        tuned.export_peft(tmp_path / "peft")
    tuned.save(tmp_path / "prompt")
    pictures = [row["image"] for row in ROWS]
    assert load(tmp_path / "prompt", backbone).predict(pictures) == tuned.predict(pictures)


def test_a_report_has_predictions_for_images_and_the_nearest_words_of_the_context() -> None:
    backbone = dual_backbone(dtype=torch.float32)
    tuned = fit(backbone, TASK, CoOp(init_text="a film"), ROWS, steps=2, progress=False)
    [seen] = inspect_images(tuned, [ROWS[0]["image"]]).images
    assert seen.prediction == tuned.predict([ROWS[0]["image"]])[0]
    assert len(inspect_prompt(tuned).tokens) == 2


def test_a_context_of_each_class_serves_no_others() -> None:
    backbone = dual_backbone(dtype=torch.float32)
    tuned = fit(backbone, TASK, CoOp(length=2, class_specific=True), ROWS, steps=2, progress=False)
    assert tuned.module.state_dict()["context"].shape == (2, 2, TEXT_WIDTH)
    for labels in (["cat", "dog", "tree"], ["tree", "house"], list(TASK.labels)[::-1]):
        with pytest.raises(ValueError, match="each class has a context of its own"):
            tuned.with_labels(labels)
        abroad = Domain("others", ROWS, task=TASK.with_labels(labels))
        with pytest.raises(ValueError, match="each class has a context of its own"):
            evaluate_domains(tuned, Domain("home", ROWS), [abroad])
    assert tuned.with_labels(TASK.labels).predict([ROWS[0]["image"]]) == tuned.predict([ROWS[0]["image"]])


def test_prompts_of_different_tasks_share_a_batch_of_images() -> None:
    backbone = dual_backbone(dtype=torch.float32)
    other = TASK.with_labels(["cat", "dog", "tree"])
    contexts = fit(backbone, TASK, CoOp(length=3), ROWS, steps=2, progress=False)
    others = replace(fit(backbone, TASK, PromptTuning(length=2), ROWS, steps=2, progress=False), task=other)
    mixed = MixedPrompts([contexts, others])
    pictures = [row["image"] for row in ROWS[:4]]
    found = mixed.predict(pictures, [0, 1, 1, 0])
    for i, prompt in enumerate((contexts, others, others, contexts)):
        [alone] = prompt.predict([pictures[i]])
        assert found[i].label == alone.label
        assert found[i].probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_an_offset_is_added_to_the_words_of_the_texts() -> None:
    backbone = dual_backbone(dtype=torch.float32)
    tuned = fit(backbone, TASK, DePT(length=2, rank=2), ROWS, steps=3, progress=False)
    start = DePT(length=2, rank=2).build(BuildContext(backbone.spec, LABELS))
    assert not torch.equal(tuned.module.state_dict()["offset_b"], start.state_dict()["offset_b"])


@pytest.mark.parametrize("method", [BitFit(), LoRA(rank=2, targets=("q_proj", "v_proj")), FullTuning()])
def test_methods_that_change_weights_change_those_of_a_copy(method: Method) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, TASK, method, ROWS, steps=3, batch_size=8, progress=False)
    changed = {name.split(".")[1] for name in tuned.trained()}
    assert {"text_model", "vision_model"} <= changed
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_settings_that_contradict_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="leave one out"):
        CoOp(length=4, init_text="a photo of a")
    with pytest.raises(ValueError, match="the task has no labels"):
        CoOp(class_specific=True).build(BuildContext(dual_backbone().spec))


def test_other_backbones_are_refused_with_a_reason() -> None:
    from softprompt.backbones.causal.backbone import CausalBackbone

    backbone = CausalBackbone(tiny_causal_lm("llama").requires_grad_(False), tiny_tokenizer())
    assert "take PromptTuning" in (CoOp().unsupported(backbone.spec) or "")
