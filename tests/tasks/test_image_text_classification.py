"""Classes of images by their texts: templates and names, ensembles, labels given later, and what goes wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Lowercase

from softprompt import ImageTextClassification, PromptTuning, ZeroShot, fit, load
from softprompt.binding import bind
from softprompt.outputs import ImageTextEmbeddings
from softprompt.tasks.image_text_classification import ImageTextClassificationEncoder
from softprompt.tasks.room import Room
from tests.naive import dual as naive
from tests.tiny.dual import TASK, TEXT_POSITIONS, dual_backbone
from tests.tiny.vision import ROWS, vision_backbone


def bound(task: ImageTextClassification, length: int = 0) -> ImageTextClassificationEncoder:
    encoder = bind(dual_backbone(), task, Room(length=length))
    assert isinstance(encoder, ImageTextClassificationEncoder)
    return encoder


def test_a_text_is_the_template_around_the_class_name_between_begin_and_end() -> None:
    tokenizer = dual_backbone().tokenizer
    texts = [tokenizer.decode(text) for text in bound(TASK).targets]
    assert texts == [
        "<s>a picture of a red.<end>",
        "<s>a picture of a very blue water.<end>",
        "<s>a picture of a old house.<end>",
    ]


@pytest.mark.parametrize(
    ("template", "virtual"),
    [("{soft} {}.", (1, 2, 3)), ("{soft:1} {}{soft}.", (1, 3, 4)), ("{}{soft}.", (2, 3, 4))],
)
def test_virtual_tokens_stand_where_the_soft_template_says(template: str, virtual: tuple[int, ...]) -> None:
    text = bound(replace(TASK, soft_template=template), 3).targets[0]
    assert tuple(i for i, atom in enumerate(text) if atom < 0) == virtual
    assert [text[i] for i in virtual] == [-1, -2, -3]


def test_all_rows_have_the_very_same_texts() -> None:
    encoder = bound(replace(TASK, labels=["red", "blue", "old_house"]))
    rows = [encoder.encode(row) for row in ROWS[:3]]
    assert all(row.targets is encoder.targets for row in rows)


def test_several_templates_are_the_mean_of_their_embeddings_at_length_one() -> None:
    backbone = dual_backbone()
    templates = ["a picture of a {}.", "the {}", "good {}!"]
    task = replace(TASK.with_labels(["red", "blue"]), template=templates)
    tuned = fit(backbone, task, ZeroShot(), ROWS, progress=False)
    row = tuned.encoder.encode(ROWS[0])
    assert row.media is not None
    assert len(row.targets) == 6
    image = naive.image_embedding(backbone.model, row.media, backbone.vision.rule)
    embedded = [naive.text_embedding(backbone.model, backbone.tokenizer, text, None) for text in row.targets]
    expected = naive.scores(backbone.model, image, [embedded[i : i + 3] for i in (0, 3)]).softmax(0)
    [prediction] = tuned.predict([ROWS[0]["image"]])
    found = torch.tensor(list(prediction.probabilities.values()), dtype=torch.float64)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-9, atol=1e-12)
    assert prediction.label == task.labels[int(expected.argmax())]


def test_the_loss_is_the_cross_entropy_over_the_classes_that_compete() -> None:
    encoder = bound(replace(TASK, loss_labels=["red", "blue"]))
    rows = [encoder.encode(row) for row in ROWS[:2]]
    images, texts = torch.eye(2, 3), torch.eye(3)
    one = torch.ones(())
    losses = encoder.loss(ImageTextEmbeddings(images, (texts,), (0, 0), 2 * one, 0 * one), rows)
    expected = torch.tensor([2.0, 0.0]).log_softmax(0)[0]
    torch.testing.assert_close(losses, -expected.expand(2))
    with pytest.raises(ValueError, match="without its answer"):
        encoder.loss(
            ImageTextEmbeddings(images, (texts,), (0, 0), one, one),
            [encoder.encode(row, answer=False) for row in ROWS[:2]],
        )


def test_rows_with_texts_of_their_own_are_scored_with_these() -> None:
    generator = torch.Generator().manual_seed(0)
    images, first, second = (torch.randn(n, 4, generator=generator) for n in (3, 2, 2))
    scale, bias = torch.tensor(3.0), torch.tensor(-1.0)
    both = ImageTextEmbeddings(images, (first, second), (1, 0, 1), scale, bias)
    expected = torch.stack([images[0] @ second.T, images[1] @ first.T, images[2] @ second.T]) * 3 - 1
    torch.testing.assert_close(both.scores(), expected)
    torch.testing.assert_close(both.of_rows([2, 1]).scores(), expected[[2, 1]])


def test_a_saved_prompt_predicts_classes_that_it_is_told_of_later(tmp_path: Path) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    task = TASK.with_labels(["red", "blue"])
    assert dict(task.names) == {"blue": "very blue water"}
    tuned = fit(backbone, task, PromptTuning(length=2), ROWS, steps=2, progress=False)
    tuned.save(tmp_path / "prompt")
    again = load(tmp_path / "prompt", backbone).with_labels(
        ["cat", "tree", "river"], names={"tree": "big tree"}
    )
    [prediction] = again.predict([ROWS[0]["image"]])
    assert list(prediction.probabilities) == ["cat", "tree", "river"]
    assert "big tree" in backbone.tokenizer.decode(
        [max(i, 0) for i in again.encoder.encode(ROWS[0], answer=False).targets[1]]
    )
    torch.testing.assert_close(dict(again.module.named_parameters()), dict(tuned.module.named_parameters()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["red"]}, "two or more are needed"),
        (
            {"labels": ["red", "red"]},
            r"the names at 0 and 1 \(from 0\), are the same text, 'red', .* leave one out",
        ),
        ({"labels": ["red", 7, "blue", "7"]}, "7 and '7', the names at 1 and 3"),
        ({"labels": ["old_house", "old house"]}, "have the same class name, 'old house'"),
        ({"names": {"green": "x"}}, "names has \\['green'\\]"),
        ({"template": "a photo"}, "0 times: expected once"),
        ({"template": []}, "0 times: expected once"),
        ({"soft_template": ["{soft} {} {}"]}, "2 times: expected once"),
        ({"columns": {"img": "x"}}, "does not read"),
    ],
)
def test_settings_that_cannot_be_meant_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageTextClassification(**{"labels": ["red", "blue"], **settings})


def test_a_class_name_that_is_empty_or_too_long_is_named() -> None:
    with pytest.raises(ValueError, match="class name '' of label 'blue' has no tokens"):
        bound(replace(TASK, names={"blue": ""}))
    long = "very " * TEXT_POSITIONS
    with pytest.raises(ValueError, match=r"'blue' takes .* tokens, 0 of them virtual, and 20 are allowed"):
        bound(replace(TASK, names={"blue": long}))
    with pytest.raises(ValueError, match="leave no room"):
        bound(TASK, TEXT_POSITIONS)
    fits = replace(TASK, names={"blue": "very very very very very very"})
    room = TEXT_POSITIONS - (max(map(len, bound(fits, 1).targets)) - 1)
    assert max(map(len, bound(fits, room).targets)) == TEXT_POSITIONS
    message = rf"'blue' takes 21 tokens, {room + 1} of them virtual, and 20 are allowed"
    with pytest.raises(ValueError, match=message):
        bound(fits, room + 1)


def test_names_that_the_tokenizer_reads_alike_are_named() -> None:
    backbone = dual_backbone()
    backbone.tokenizer.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(ValueError, match="of 'red' and 'blue', 'Turkey' and 'turkey', are the same tokens"):
        bind(backbone, replace(TASK, names={"red": "Turkey", "blue": "turkey"}), Room())


def test_a_backbone_that_reads_no_texts_is_refused() -> None:
    with pytest.raises(ValueError, match="compares images with texts, and tiny/vit"):
        bind(vision_backbone(), TASK, Room())
