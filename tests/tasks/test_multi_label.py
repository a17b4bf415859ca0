"""Multi-label classification: each label stands for itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchmetrics.functional.classification import multilabel_f1_score

import softprompt as sp
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import TextSetting
from softprompt.tasks.multi_label import label_set_metrics
from tests.tiny.encoders import encoder_backbone, encoder_tokenizer

LABELS = ["cheap", "fast", "new"]
TASK = sp.MultiLabelClassification("{text}", labels=LABELS)


@pytest.mark.parametrize(
    "value",
    ["fast|cheap", " fast | cheap ", ["fast", "cheap"], '["cheap", "fast"]'],
    ids=["bar", "blanks", "list", "json"],
)
def test_labels_are_read_from_a_list_or_a_text(value: object) -> None:
    assert TASK.read_labels({"text": "a", "labels": value}) == ("cheap", "fast")


def test_no_label_is_an_answer_too_and_an_unknown_one_is_an_error() -> None:
    assert (
        TASK.read_labels({"text": "a", "labels": ""}) == TASK.read_labels({"text": "a", "labels": []}) == ()
    )
    with pytest.raises(ValueError, match=r"label 'fast;new' is not among .* set `separator`"):
        TASK.read_labels({"text": "a", "labels": "fast;new"})


def test_the_loss_is_the_mean_binary_cross_entropy() -> None:
    encoder = TASK.bind(TextSetting(encoder_tokenizer(), family="text-encoder", closed=True))
    rows = [encoder.encode({"text": "a", "labels": value}) for value in ("fast", "")]
    logits = torch.tensor([[0.5, 2.0, -1.0], [0.0, -3.0, 1.0]], dtype=torch.float64)
    p, right = logits.sigmoid(), torch.tensor([[0, 1, 0], [0, 0, 0]])
    expected = -torch.where(right == 1, p.log(), (1 - p).log()).mean(dim=1)
    torch.testing.assert_close(encoder.loss(logits, rows), expected)
    with pytest.raises(ValueError, match="encoded without its answer"):
        encoder.loss(logits[:1], [EncodedRow((1,), read=(0,))])


def test_metrics_are_those_of_torchmetrics() -> None:
    gold, predicted = (
        torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 0]]),
        torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
    )

    def sets(flags: torch.Tensor) -> list[list[str]]:
        return [[LABELS[i] for i in row.nonzero()[:, 0].tolist()] for row in flags]

    found = label_set_metrics(sets(gold), sets(predicted), LABELS)
    assert found["micro_f1"] == pytest.approx(float(multilabel_f1_score(predicted, gold, 3, average="micro")))
    assert found["macro_f1"] == pytest.approx(float(multilabel_f1_score(predicted, gold, 3, average="macro")))
    assert (found["exact_match"], found["label_accuracy"]) == (1 / 3, pytest.approx(7 / 9))


def test_a_prompt_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    backbone = encoder_backbone("bert", dtype=torch.float32)
    rows = [{"text": f"word {i}", "labels": LABELS[: i % 3]} for i in range(6)]
    tuned = sp.fit(
        backbone, TASK, sp.PromptTuning(length=2), rows, rows, epochs=2, batch_size=4, progress=False
    )
    assert tuned.recipe["steps"] == tuned.recipe["steps_made"] == 4
    assert "epochs" not in tuned.recipe
    tuned.save(tmp_path / "prompt")
    [again] = sp.load(tmp_path / "prompt", backbone).predict(["word 1"])
    assert again == tuned.predict(["word 1"])[0]
    assert again.labels == tuple(k for k, p in again.probabilities.items() if p >= 0.5)
