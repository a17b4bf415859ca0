"""Bring backbone, task, method and rows together: the same for training, use and saving."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.data import Row
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts import Method, PromptModule
from softprompt.tasks.base import ImageTextSetting, Task, TaskEncoder, TextSetting
from softprompt.tasks.room import Room


def new_head(method: Method, task: Task, spec: BackboneSpec, generator: torch.Generator) -> nn.Module | None:
    """The untrained head for a task, None where words answer. Raises ValueError where method and task do not fit."""
    if task.outputs is not None:
        return method.head(spec.state_width or spec.width, task.outputs, generator)
    if method.head_only:
        raise ValueError(
            f"{method.name} trains a head, and {task.name} is answered by words: take a task with a head, such as "
            "SequenceClassification"
        )
    return None


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
    """The task's metrics of a model over rows.

    rows      with the right answers
    on_batch  called after each batch with the number of rows that are done
    encoded   the same rows, where they are encoded already
    """
    encoded = [encoder.encode(row) for row in rows] if encoded is None else encoded
    predictions = encoder.predict(model, encoded, batch_size=batch_size, on_batch=on_batch)
    metrics = task.judge(encoder, predictions, rows)
    with torch.no_grad():
        return metrics | encoder.likelihood_metrics(model, encoded, batch_size=batch_size)


def room_of(module: PromptModule, max_tokens: int | None) -> Room:
    """The room that a prompt takes in rows of at most `max_tokens` tokens."""
    return Room(max_tokens, module.length, module.prefix_length, module.pooling)


def bind(backbone: Backbone, task: Task, room: Room) -> TaskEncoder:
    """The task's encoder for this backbone and prompts that take this room.

    Raises ValueError if the prompt leaves no room for any text, and for a task about text on a backbone that reads images
    or the other way round.
    """
    positions = backbone.spec.positions
    if positions is not None and backbone.spec.prefix_counts:
        positions -= room.prefix_length
    limit = min((n for n in (room.max_tokens, positions) if n is not None), default=None)
    if limit is not None and room.length >= limit:
        prefix = f" and a prefix of {room.prefix_length}" if room.prefix_length else ""
        raise ValueError(
            f"{room.length} virtual tokens{prefix} leave no room for text: a row may have {limit} tokens "
            f"(max_tokens={room.max_tokens}, the backbone's limit is {backbone.spec.positions})"
        )
    spec = backbone.spec
    if task.about_images != (spec.image is not None):
        asked, given = ("images", "text") if task.about_images else ("text", "images")
        other = "SequenceClassification" if task.about_images else "ImageClassification"
        raise ValueError(
            f"{task.name} asks about {asked}, and {backbone.name} ({spec.family}) reads {given}: take a backbone that reads"
            f" {asked}, or a task about {given}, such as {other}"
        )
    if task.compares_texts and spec.vision is None:
        raise ValueError(
            f"{task.name} compares images with texts, and {backbone.name} ({spec.family}) reads no texts: take a dual encoder"
            " such as CLIP, or ImageClassification"
        )
    if spec.image is not None and not task.compares_texts:
        return task.bind(spec.image if room.pooling is None else replace(spec.image, pooling=room.pooling))
    text = TextSetting(backbone.tokenizer, room.length, limit, spec.closed, spec.family, spec.read_media)
    return task.bind(text if spec.image is None else ImageTextSetting(spec.image, text))
