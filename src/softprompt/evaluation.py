"""Evaluation of a prompted model: the task's metrics over rows with answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from softprompt.data import Row
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.reading import encode_rows


def evaluate(
    model: PromptedModel,
    task: Task,
    encoder: TaskEncoder,
    rows: Sequence[Row],
    *,
    batch_size: int = 16,
    on_batch: Callable[[int], None] | None = None,
    encoded: Sequence[EncodedRow] | None = None,
) -> dict[str, Any]:
    """The task's metrics of a model over rows with answers.

    model       the backbone with its prompt
    task        defines the metrics
    encoder     of the task, on the model's backbone
    rows        with answers
    batch_size  number of rows that are run together
    on_batch    is called after each batch with the number of rows done so far
    encoded     the same rows, if they are encoded already
    """
    encoded = encode_rows(encoder, rows) if encoded is None else encoded
    predictions = encoder.predict(model, encoded, batch_size=batch_size, on_batch=on_batch)
    metrics = task.judge(encoder, predictions, rows)
    with torch.no_grad():
        return metrics | encoder.likelihood_metrics(model, encoded, batch_size=batch_size)
