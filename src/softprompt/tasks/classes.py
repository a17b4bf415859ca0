"""What tasks that choose one of K labels share: the prediction, and the loss and reading of a head's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer
from softprompt.tasks.reading import check_answered, read_outputs

ClassWeights = Mapping[str, float] | str | None
"""Label -> the factor of the loss of its rows; "balanced" until the training rows are known."""


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
    answers: Tensor,
    rows: Sequence[EncodedRow],
    labels: Sequence[str],
    competing: Sequence[str] | None,
    weights: ClassWeights = None,
) -> Tensor:
    """Return the cross-entropy of each row, (B,), in nats.

    Arguments:
        answers: (B, K), the logits of `labels`
        rows: B rows, encoded with their answers
        labels: the K labels
        competing: the labels among which the loss is computed; the logits of the others become minus infinity. None: all
        weights: label -> the factor of the loss of its rows

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
    return functional.cross_entropy(answers, right, reduction="none") * row_weights(right, labels, weights)


def weighted(weights: ClassWeights) -> Sequence[str]:
    """Return the labels that weights name. Raises ValueError for a weight that is no number of 0 or more."""
    if weights is None or isinstance(weights, str):
        return ()
    for label, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"class_weights has {weight} for {label!r}: expected a number of 0 or more")
    return tuple(weights)


def row_weights(right: Tensor, labels: Sequence[str], weights: ClassWeights) -> Tensor | float:
    """Return the factor of each row's loss by the number of its label, (B,); 1.0 where there are no weights."""
    if weights is None:
        return 1.0
    if isinstance(weights, str):
        raise ValueError('class_weights="balanced" needs the training rows: bind what `for_rows` returns')
    by_label = torch.tensor([float(weights.get(label, 1.0)) for label in labels], device=right.device)
    return by_label[right]  # (K,) -> (B,)


def with_balance(task: Any, train: Sequence[Row]) -> Any:
    """Return a task with class_weights="balanced" as numbers; any other task as it is. Labels without rows have weight 1."""
    if task.class_weights != "balanced":
        return task
    counts = Counter(task.read_label(row) for row in train)
    return replace(task, class_weights={k: len(train) / (len(counts) * n) for k, n in sorted(counts.items())})
