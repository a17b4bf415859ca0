"""Prompts in dual encoders: a batch of images and texts is one image and one padded text at a time, prompts and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.binding import bind
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.tasks.room import Room
from tests.naive import dual as naive
from tests.naive import vision as naive_vision
from tests.tiny.dual import DUALS, TASK, TEXT_WIDTH, Dual, dual_backbone
from tests.tiny.vision import LAYERS, PATCHES, WIDTH, images

SOFT = {"end": "{soft} {}.", "middle": "{soft:2} {} {soft}.", "front": "{} {soft}."}


def noise(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3


def rows_of(backbone: DualBackbone, position: str, length: int, count: int = 3) -> list[EncodedRow]:
    """Images of noise beside the texts of TASK, all with the same targets."""
    encoder = bind(backbone, replace(TASK, soft_template=SOFT[position]), Room(length=length))
    targets = encoder.targets  # type: ignore[attr-defined]
    return [EncodedRow((), targets, media=image) for image in images(count)]


def naive_scores(
    backbone: DualBackbone, rows: list[EncodedRow], contexts: list[Tensor], offset: Tensor | None = None
) -> Tensor:
    """contexts: of each text its own (M, d)."""
    model, tokenizer = backbone.model, backbone.tokenizer
    found = []
    for row in rows:
        assert row.media is not None
        image = naive.image_embedding(model, row.media, backbone.vision.rule)
        texts = [
            [naive.text_embedding(model, tokenizer, text, context, offset)]
            for text, context in zip(row.targets, contexts, strict=True)
        ]
        found.append(naive.scores(model, image, texts))
    return torch.stack(found)


@pytest.mark.parametrize("dual", DUALS)
@pytest.mark.parametrize("position", SOFT)
def test_a_context_gives_what_whole_padded_texts_give_one_at_a_time(dual: Dual, position: str) -> None:
    backbone = dual_backbone(dual)
    rows = rows_of(backbone, position, 3)
    ours, theirs = (noise(1, 3, TEXT_WIDTH).requires_grad_() for _ in range(2))
    scores = backbone.score(rows, PromptOutput(tokens=ours)).scores()
    expected = naive_scores(backbone, rows, [theirs[0]] * len(rows[0].targets))
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    direction = noise(*scores.shape, seed=2)
    (scores * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("positions", [3, 30])
@pytest.mark.parametrize("position", SOFT)
@pytest.mark.parametrize("dual", DUALS)
def test_an_offset_gives_what_is_added_to_the_words_of_one_whole_text_at_a_time(
    dual: Dual, position: str, positions: int
) -> None:
    backbone = dual_backbone(dual)
    rows = rows_of(backbone, position, 3, 2)
    ours, theirs = (
        (noise(1, 3, TEXT_WIDTH).requires_grad_(), noise(1, positions, TEXT_WIDTH, seed=3).requires_grad_())
        for _ in range(2)
    )
    scores = backbone.score(rows, PromptOutput(tokens=ours[0], offset=ours[1])).scores()
    expected = naive_scores(backbone, rows, [theirs[0][0]] * len(rows[0].targets), theirs[1][0])
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    direction = noise(*scores.shape, seed=2)
    (scores * direction).sum().backward()
    (expected * direction).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-9, atol=1e-10)
    assert ours[1].grad is not None
    assert ours[1].grad[0, 1].abs().max() > 0


@pytest.mark.parametrize("position", SOFT)
@pytest.mark.parametrize("dual", DUALS)
def test_contexts_of_single_classes_give_what_each_text_gives_with_its_own(dual: Dual, position: str) -> None:
    backbone = dual_backbone(dual)
    rows = rows_of(backbone, position, 3)
    ours, theirs = (noise(3, 3, TEXT_WIDTH).requires_grad_() for _ in range(2))
    scores = backbone.score(rows, PromptOutput(tokens=ours, texts=torch.arange(3))).scores()
    expected = naive_scores(backbone, rows, list(theirs))
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dual", DUALS)
def test_a_context_in_several_templates_gives_the_mean_of_what_each_gives_alone(dual: Dual) -> None:
    backbone = dual_backbone(dual)
    encoder = bind(backbone, replace(TASK, soft_template=list(SOFT.values())), Room(length=3))
    targets = encoder.targets  # type: ignore[attr-defined]
    assert len(targets) == 3 * len(TASK.labels)
    rows = [EncodedRow((), targets, media=image) for image in images(2)]
    ours, theirs = (noise(1, 3, TEXT_WIDTH).requires_grad_() for _ in range(2))
    scores = backbone.score(rows, PromptOutput(tokens=ours)).scores(templates=3)
    model = backbone.model
    texts = [naive.text_embedding(model, backbone.tokenizer, text, theirs[0]) for text in targets]
    expected = torch.stack(
        [
            naive.scores(
                model,
                naive.image_embedding(model, row.media, backbone.vision.rule),  # type: ignore[arg-type]
                [texts[3 * k : 3 * k + 3] for k in range(len(TASK.labels))],
            )
            for row in rows
        ]
    )
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    direction = noise(*scores.shape, seed=2)
    (scores * direction).sum().backward()
    (expected * direction).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_each_image_may_carry_a_context_of_its_own() -> None:
    backbone = dual_backbone()
    rows = rows_of(backbone, "end", 2)
    ours, theirs = (noise(2, 2, TEXT_WIDTH).requires_grad_() for _ in range(2))
    which = [1, 0, 1]
    scores = backbone.score(rows, PromptOutput(tokens=ours, rows=torch.tensor(which))).scores()
    expected = torch.cat(
        [naive_scores(backbone, [row], [theirs[g]] * 3) for row, g in zip(rows, which, strict=True)]
    )
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dual", DUALS)
def test_without_a_prompt_the_logits_are_those_of_the_model(dual: Dual) -> None:
    backbone = dual_backbone(dual)
    rows = rows_of(backbone, "end", 0)
    texts = [f"a picture of a {name[0]}." for name in TASK.label_words.values()]
    padding = {"padding": "max_length", "return_tensors": "pt"}
    ids = backbone.tokenizer(texts, **padding, return_attention_mask=dual != "siglip")
    pixels = torch.stack([row.media for row in rows if row.media is not None])
    expected = backbone.model(**ids, pixel_values=pixels).logits_per_image
    torch.testing.assert_close(
        backbone.score(rows, PromptOutput()).scores(), expected, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("dual", DUALS)
def test_prompts_of_the_vision_tower_give_what_concatenation_gives(dual: Dual, deep: bool) -> None:
    backbone = dual_backbone(dual)
    rows = rows_of(backbone, "end", 0)
    ours, theirs = (noise(LAYERS, 2, WIDTH).requires_grad_() for _ in range(2))
    vision = PromptOutput(layers=tuple(ours[i : i + 1] for i in range(LAYERS)))
    scores = backbone.score(
        rows, PromptOutput(vision=vision if deep else PromptOutput(tokens=ours[:1]))
    ).scores()
    model: Any = backbone.model
    expected = []
    for row in rows:
        assert row.media is not None
        read = "pooler" if dual == "siglip" else "class"
        prompts: dict[str, Any] = {"deep": list(theirs)} if deep else {"shallow": theirs[0]}
        image = naive_vision.state(model.vision_model, row.media, PATCHES, read=read, **prompts)
        if dual == "vit-bert":
            image = model.vision_model.pooler(image[None, None])[0]
        if dual != "siglip":
            image = model.visual_projection(image)
        texts = [[naive.text_embedding(model, backbone.tokenizer, text, None)] for text in row.targets]
        expected.append(naive.scores(model, image / image.norm(), texts))
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-10, atol=1e-10)
    scores.square().sum().backward()
    torch.stack(expected).square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-10)
