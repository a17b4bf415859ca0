"""Joining a backbone, a task and a method: the encoder that turns the task's rows into the backbone's input, and the head
that answers the task. Training, prediction and loading all join them here."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.prompts import Method, PromptModule
from softprompt.tasks.base import ImageTextSetting, Task, TaskEncoder, TextSetting
from softprompt.tasks.room import Room


def new_head(method: Method, task: Task, spec: BackboneSpec, generator: torch.Generator) -> nn.Module | None:
    """The untrained head for a task; None if words answer it.

    method     builds the head
    task       says how many numbers it gives
    spec       of the backbone whose states it reads
    generator  source of randomness for its initial value

    Raises ValueError if the method trains a head and the task is answered by words.
    """
    if task.outputs is not None:
        return method.head(spec.state_size, task.outputs, generator)
    if method.head_only:
        raise ValueError(
            f"{method.name} trains a head, and {task.name} is answered by words: take a task with a head, such as "
            "SequenceClassification"
        )
    return None


def room_of(module: PromptModule, max_tokens: int | None) -> Room:
    """The room that a prompt takes in rows of at most `max_tokens` tokens."""
    return Room(max_tokens, module.length, module.prefix_length, module.pooling)


def bind(backbone: Backbone, task: Task, room: Room) -> TaskEncoder:
    """The task's encoder for this backbone and prompts that take this room.

    Raises ValueError if the prompt leaves no room for any text, for a task about text on a backbone that reads images,
    and for a task about images on one that reads text.
    """
    spec = backbone.spec
    limit = _longest_row(spec, room)
    _check_what_is_read(backbone, task)
    image = spec.image
    if image is not None and not task.compares_texts:
        return task.bind(image if room.pooling is None else replace(image, pooling=room.pooling))
    text = TextSetting(
        tokenizer=backbone.tokenizer,
        virtual_tokens=room.length,
        max_tokens=limit,
        closed=spec.closed,
        family=spec.family,
        read_media=spec.read_media,
        rows=spec.vocabulary if len(backbone.tokenizer) > spec.vocabulary else None,
        read_picture=spec.read_picture,
        image_id=spec.image_id,
    )
    return task.bind(text if image is None else ImageTextSetting(image, text))


def _longest_row(spec: BackboneSpec, room: Room) -> int | None:
    """How many tokens a row may have, virtual tokens included; None: any number. Raises ValueError if no text fits."""
    positions = spec.positions
    if positions is not None and spec.prefix_counts:
        positions -= room.prefix_length
    limit = min((n for n in (room.max_tokens, positions) if n is not None), default=None)
    if limit is not None and room.length >= limit:
        prefix = f" and a prefix of {room.prefix_length}" if room.prefix_length else ""
        raise ValueError(
            f"{room.length} virtual tokens{prefix} leave no room for text: a row may have {limit} tokens "
            f"(max_tokens={room.max_tokens}, the backbone's limit is {spec.positions})"
        )
    return limit


def _check_what_is_read(backbone: Backbone, task: Task) -> None:
    """Raise ValueError for a task about something that the backbone does not read."""
    spec = backbone.spec
    if task.about_images != spec.reads_images:
        asked, given = ("images", "text") if task.about_images else ("text", "images")
        other = "SequenceClassification" if task.about_images else "ImageClassification"
        raise ValueError(
            f"{task.name} asks about {asked}, and {backbone.name} ({spec.family}) reads {given}: take a backbone that reads"
            f" {asked}, or a task about {given}, such as {other}"
        )
    if task.compares_texts and spec.reads != "images and text":
        raise ValueError(
            f"{task.name} compares images with texts, and {backbone.name} ({spec.family}) reads no texts: take a dual encoder"
            " such as CLIP, or ImageClassification"
        )
