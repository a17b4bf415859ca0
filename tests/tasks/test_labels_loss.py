"""loss_labels: the loss is computed as if there were no other labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

import softprompt as sp
from softprompt.outputs import EncodedRow
from softprompt.tasks.classes import class_losses
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import ROWS, vision_backbone

LABELS = ["a", "b", "c", "d"]


def answered(*answers: int) -> list[EncodedRow]:
    return [EncodedRow((), read=(0,), answer=(answer,)) for answer in answers]


def test_the_loss_is_that_of_a_head_without_the_other_labels() -> None:
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    found = class_losses(logits, answered(1, 3, 1), LABELS, ["d", "b"])
    found.sum().backward()
    assert logits.grad is not None
    few = logits.detach()[:, [1, 3]].requires_grad_()
    expected = functional.cross_entropy(few, torch.tensor([0, 1, 0]), reduction="none")
    expected.sum().backward()
    assert few.grad is not None
    assert_close(found, expected)
    assert_close(logits.grad[:, [1, 3]], few.grad)
    assert (logits.grad[:, [0, 2]] == 0).all()


def test_all_labels_compete_by_default() -> None:
    logits = torch.randn(3, 4)
    assert_close(
        class_losses(logits, answered(1, 3, 1), LABELS, None),
        class_losses(logits, answered(1, 3, 1), LABELS, LABELS),
    )


def test_a_row_whose_label_does_not_compete_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rows have the labels \['c'\], and loss_labels are \['a', 'b'\]"):
        class_losses(torch.randn(2, 4), answered(0, 2), LABELS, ["a", "b"])


def test_loss_labels_are_among_the_labels() -> None:
    tasks: list[Any] = [sp.ImageClassification, partial(sp.SequenceClassification, "{text}")]
    for task in tasks:
        assert task(labels=[1, 2, 3], loss_labels=[2, 3]).loss_labels == ("2", "3")
        with pytest.raises(ValueError, match=r"loss_labels has \['4'\]"):
            task(labels=[1, 2, 3], loss_labels=[2, 4])


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_other_labels_outputs_stay_as_they_were_and_are_no_concern(kind: str, recwarn: Any) -> None:
    backbone: Any
    task: Any
    if kind == "image":
        backbone, rows, task = (
            vision_backbone(),
            ROWS,
            sp.ImageClassification(labels=["green", "red", "blue"], loss_labels=["red", "blue"]),
        )
    else:
        backbone, rows = tiny_backbone(), TEXTS
        task = sp.SequenceClassification("{text}", labels=["so", "pos", "neg"], loss_labels=["pos", "neg"])
    short: dict[str, Any] = {"batch_size": 4, "learning_rate": 0.05, "progress": False, "warmup": 0}
    method = sp.LinearProbe()
    start = sp.fit(backbone, task, method, rows, steps=1, **short | {"learning_rate": 1e-30})
    tuned = sp.fit(backbone, task, method, rows, steps=10, **short)
    before, after = start.state()["head.weight"], tuned.state()["head.weight"]
    moved = [not torch.equal(after[i], before[i]) for i in range(3)]
    assert moved == [False, True, True]
    assert set(tuned.predict(rows[:1])[0].probabilities) == set(task.labels)
    assert not [warning for warning in recwarn if "no training row" in str(warning.message)]
