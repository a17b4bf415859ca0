"""Questions about images and captions: what is learned, and how answers of several people are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.tasks.image_writing import caption_metrics, vqa_accuracy, vqa_text
from tests.tiny.image_text import noise, tiny_image_text_backbone


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat.", "cat"),
        ("two dogs, one cat", "2 dogs 1 cat"),
        ("1,000.50", "1000.50"),
        ("don't", "dont"),
        ("left/right", "left right"),
        ("none", "0"),
    ],
)
def test_answers_are_compared_as_vqa_does(text: str, expected: str) -> None:
    assert vqa_text(text) == expected


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_three_of_the_other_nine_people_must_agree(agreeing: int, expected: float) -> None:
    answers = ["A cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert vqa_accuracy("cat", answers) == pytest.approx(expected)


def test_the_most_frequent_answer_is_learned() -> None:
    task = sp.ImageQuestion()
    row = {"image": noise(0), "question": "what", "answers": ["cat", "dog", "dog"]}
    assert task.render(row) == "[image]\nQuestion: what\nAnswer: dog"
    assert task.evaluate(["dog"], [row])["vqa_accuracy"] == pytest.approx((2 * 1 / 3 + 2 / 3) / 3)
    vqa = {**row, "answers": [{"answer": "cat", "answer_confidence": "yes"}]}
    assert task.evaluate(["cat"], [vqa])["vqa_accuracy"] == 1.0
    for wrong, reason in (("cat", "expected a list of texts"), ([], "an empty list")):
        with pytest.raises(ValueError, match=reason):
            task.render({**row, "answers": wrong})
    with pytest.raises(ValueError, match="expected one: the answer"):
        sp.ImageQuestion(target="{a}{b}")


def test_captions_are_compared_with_the_nearest_of_several() -> None:
    found = caption_metrics(["a big red dog here"], [["the cat", "a big red dog here"]])
    assert found["exact_match"] == found["rouge_l"] == 1.0
    assert found["bleu"] == pytest.approx(100)
    task = sp.Captioning()
    rows: list[dict[str, Any]] = [{"captions": ["a cat", "the cat"]}, {"caption": "a dog"}]
    assert task.evaluate(["the cat", "a dog"], rows)["exact_match"] == 1.0


@pytest.mark.parametrize("kind", ["llava", "paligemma"])
def test_questions_are_learned_saved_and_answered(kind: str, tmp_path: Path) -> None:
    backbone = tiny_image_text_backbone(kind, torch.float32)
    task = sp.ImageQuestion(template="{image}{soft}{question}", choices=("cat", "dog"), max_new_tokens=3)
    rows = [
        {"image": noise(i % 2), "question": "what", "answers": [("cat", "dog")[i % 2]] * 3} for i in range(4)
    ]
    tuned = sp.fit(backbone, task, sp.PromptTuning(length=2), rows, steps=2, warmup=0, progress=False)
    again = sp.load(tuned.save(tmp_path / "prompt"), backbone)
    asked = [{"image": noise(5), "question": "what"}]
    assert again.task == task
    assert again.predict(asked) == tuned.predict(asked)
    assert set(again.predict(asked)) <= {"cat", "dog"}
    assert "vqa_accuracy" in again.evaluate(rows)
