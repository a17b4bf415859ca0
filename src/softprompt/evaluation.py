"""Evaluation of a prompted model: the task's metrics over rows with answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from softprompt.data import MANY, Row
from softprompt.features.lazy import LazilyEncoded
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.classes import ClassPrediction
from softprompt.tasks.reading import encode_row, encode_rows

Metrics = Mapping[str, Callable[[Sequence[Any], Sequence[Row]], float]]
"""Name -> a function of the predictions, as `TunedPrompt.predict` gives them, and the rows."""


def evaluate(
    model: PromptedModel,
    task: Task,
    encoder: TaskEncoder,
    rows: Sequence[Row],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    encoded: Sequence[EncodedRow] | None = None,
    metrics: Metrics | None = None,
) -> dict[str, Any]:
    """The task's metrics of a model over rows with answers.

    model       the backbone with its prompt
    task        defines the metrics
    encoder     of the task, on the model's backbone
    rows        with answers
    batch_size  number of rows that are run together
    on_batch    is called after each batch with the number of rows done so far
    encoded     the same rows, if they are encoded already; otherwise many rows are read and encoded some batches at a time
    metrics     further metrics: name -> function of the predictions and the rows, which returns a number

    Raises ValueError for a metric with the name of one of the task's.
    """
    if encoded is None and len(rows) >= MANY and not task.in_windows:
        encoded = LazilyEncoded(rows, encoder)
        predictions = _predicted_in_parts(
            model, encoder, rows, batch_size=batch_size, on_batch=on_batch, whole=bool(metrics)
        )
    else:
        encoded = encode_rows(encoder, rows) if encoded is None else encoded
        predictions = encoder.predict(model, encoded, batch_size=batch_size, on_batch=on_batch)
    found = task.judge(encoder, predictions, rows)
    with torch.no_grad():
        found = found | encoder.likelihood_metrics(model, encoded, batch_size=batch_size)
    for name, function in (metrics or {}).items():
        if name in found:
            raise ValueError(f"metrics has {name!r}, which {task.name} has already: give it another name")
        found[name] = float(function(predictions, rows))
    return found


_BATCHES = 64  # batches of similar lengths are made of so many batches' rows


def _predicted_in_parts(
    model: PromptedModel,
    encoder: TaskEncoder,
    rows: Sequence[Row],
    *,
    batch_size: int,
    on_batch: Callable[[int], None] | None,
    whole: bool,
) -> list[Any]:
    """The predictions of very many rows, of which some batches are in memory at a time.

    whole: keep the probabilities of labels; otherwise the label alone, once for all rows that have it
    """
    labels: dict[str, ClassPrediction] = {}

    def kept(prediction: Any) -> Any:
        if whole or not isinstance(prediction, ClassPrediction):
            return prediction
        return labels.setdefault(prediction.label, ClassPrediction(prediction.label, {}))

    found: list[Any] = []
    for start in range(0, len(rows), batch_size * _BATCHES):
        part = rows[start : start + batch_size * _BATCHES]
        encoded = [encode_row(encoder, start + i, row) for i, row in enumerate(part)]
        found += map(kept, encoder.predict(model, encoded, batch_size=batch_size))
        if on_batch is not None:
            on_batch(len(found))
    return found
