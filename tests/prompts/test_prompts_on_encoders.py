"""Methods, heads and label words on encoders: what is learned, what stays, what a batch and a file give back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import (
    FewShot,
    FullTuning,
    PromptTuning,
    PTuningV2,
    SequenceClassification,
    SpanExtraction,
    TextClassification,
    TokenClassification,
    TunedPrompt,
    fit,
    load,
    methods,
)
from softprompt.tasks.base import Task
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import ROWS
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

CLOZE = TextClassification("{text} sentiment {mask}.", labels={"neg": " bad", "pos": " good"})
WHOLE = SequenceClassification("{text}", labels=["neg", "pos"])
TEXTS = [row["text"] for row in ROWS]
FROZEN = sorted({"prompt-tuning", "p-tuning", "p-tuning-v2", "prefix-tuning", "dept"} & set(methods()))


def assert_one_by_one(tuned: TunedPrompt, inputs: list[Any]) -> None:
    """A batch of rows of different lengths gives what each row gives alone."""
    assert_equal_up_to_rounding(tuned.predict(inputs), [tuned.predict([x])[0] for x in inputs])


@pytest.mark.slow
@pytest.mark.parametrize("task", [CLOZE, WHOLE], ids=lambda task: task.name)
@pytest.mark.parametrize("name", FROZEN)
def test_a_method_trains_on_an_encoder_that_stays_bit_identical(
    name: str, task: Task, tmp_path: Path
) -> None:
    backbone = encoder_backbone()
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    tuned = fit(backbone, task, methods()[name](), ROWS, ROWS, steps=2, progress=False)
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())
    assert_one_by_one(tuned, TEXTS)
    assert load(tuned.save(tmp_path / "p"), backbone=backbone).predict(TEXTS) == tuned.predict(TEXTS)


def test_prefixes_with_a_head_learn_on_a_text_encoder() -> None:
    backbone = encoder_backbone("roberta", head=False, dtype=torch.float32)
    tuned = fit(
        backbone, WHOLE, PTuningV2(length=3), ROWS, ROWS, steps=100, learning_rate=0.05, progress=False
    )
    assert tuned.metrics["validation"]["accuracy"] == 1.0


@pytest.mark.parametrize("method", [PromptTuning(length=3), PTuningV2(length=3)], ids=lambda m: m.name)
def test_tags_and_spans_are_read_where_the_words_are(method: Any) -> None:
    backbone = encoder_backbone("roberta", head=False)
    rows = [
        {"words": text.split(), "tags": ["B-X" if w in ("film", "dog") else "O" for w in text.split()]}
        for text in TEXTS
    ]
    tuned = fit(backbone, TokenClassification(tags=["O", "B-X"]), method, rows, steps=2, progress=False)
    assert_one_by_one(tuned, rows)
    spans = [
        {
            "question": "what is it",
            "context": f"look, {text} here",
            "answers": {"text": [text.split()[0]], "answer_start": [6]},
        }
        for text in TEXTS
    ]
    tuned = fit(backbone, SpanExtraction(), method, spans, steps=2, progress=False)
    assert_one_by_one(tuned, spans)


def test_full_tuning_learns_a_cloze_task_on_a_copy() -> None:
    backbone = encoder_backbone(dtype=torch.float32)
    before = {key: tensor.clone() for key, tensor in backbone.model.state_dict().items()}
    tuned = fit(backbone, CLOZE, FullTuning(), ROWS, ROWS, steps=60, learning_rate=0.003, progress=False)
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize(
    ("template", "word", "shown"),
    [
        ("{text} is {mask}.", " good", "film is good."),
        ("{text} is {mask}", " very good", "film is very good"),
        ("{text} is {mask}{mask}", " very good", "film is very good"),
    ],
)
def test_demonstrations_on_an_encoder_have_their_answers_in_the_gaps(
    template: str, word: str, shown: str
) -> None:
    backbone = encoder_backbone()
    task = TextClassification(template, labels={"a": word, "b": " so bad"})
    tuned = fit(backbone, task, FewShot(shots=1, separator=" now"), [{"text": "film", "label": "a"}] * 2)
    expected = backbone.spec.embed(torch.tensor(backbone.spec.tokenize(f"{shown} now")))
    assert torch.equal(tuned.module.state_dict()["tokens"], expected)


def test_a_prefix_where_attention_cannot_be_reached_is_refused() -> None:
    with pytest.raises(ValueError, match="p-tuning-v2 cannot be used on tiny/deberta-v2"):
        fit(encoder_backbone("deberta-v2"), CLOZE, PTuningV2(), ROWS, steps=1, progress=False)
