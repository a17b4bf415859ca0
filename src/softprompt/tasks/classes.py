"""What tasks that choose one of K labels share: the prediction, and the loss and reading of a head's outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer
from softprompt.tasks.reading import check_answered, read_outputs


@dataclass(frozen=True)
class ClassPrediction:
    """The most likely label, and the probability of every label (they sum to 1)."""

    label: str
    probabilities: dict[str, float]


def likeliest(labels: Iterable[str], shares: Iterable[float]) -> ClassPrediction:
    """Return the prediction for these probabilities, one for each label; the first label wins a tie."""
    probabilities = dict(zip(labels, shares, strict=True))
    return ClassPrediction(max(probabilities, key=probabilities.__getitem__), probabilities)


def predict_classes(
    model: Scorer,
    rows: Sequence[EncodedRow],
    labels: Sequence[str],
    batch_size: int,
    on_batch: Callable[[int], None] | None,
) -> list[ClassPrediction]:
    """Return the most likely label of each row by the logits of its head, in order."""

    def read(row: EncodedRow, logits: Tensor) -> ClassPrediction:
        return likeliest(labels, logits[0].double().softmax(dim=-1).tolist())  # (1, K) -> (K,)

    return read_outputs(model, rows, batch_size, on_batch, read)


def class_losses(
    answers: Tensor, rows: Sequence[EncodedRow], labels: Sequence[str], competing: Sequence[str] | None
) -> Tensor:
    """Return the cross-entropy of each row, (B,), in nats.

    Arguments:
        answers: (B, K), the logits of `labels`
        rows: B rows, encoded with their answers
        labels: the K labels
        competing: the labels among which the loss is computed; the logits of the others become minus infinity. None: all

    Raises:
        ValueError: for a row without its label, and for one whose label does not compete
    """
    check_answered(rows)
    right = torch.tensor([int(row.answer[0]) for row in rows], device=answers.device)
    if competing is not None:
        if strange := sorted({labels[i] for i in right.tolist()} - set(competing)):
            raise ValueError(f"rows have the labels {strange}, and loss_labels are {list(competing)}")
        left_out = [i for i, label in enumerate(labels) if label not in competing]
        answers = answers.index_fill(1, torch.tensor(left_out, device=answers.device).long(), -torch.inf)
    return functional.cross_entropy(answers, right, reduction="none")
