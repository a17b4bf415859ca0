"""Joining a backbone, a task and a method: the encoder that turns the task's rows into the backbone's input, and the head
that answers the task. Training, prediction and loading all join them here."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.images import ImagePooling
from softprompt.prompts import Method
from softprompt.tasks.base import ImageTextSetting, Task, TaskEncoder, TextSetting


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


def bind(
    backbone: Backbone,
    task: Task,
    virtual_tokens: int,
    max_tokens: int | None,
    prefix_length: int = 0,
    pooling: ImagePooling | None = None,
) -> TaskEncoder:
    """The task's encoder for this backbone.

    backbone        reads the rows
    task            that is encoded
    virtual_tokens  P, number of virtual tokens of the prompt
    max_tokens      longest row in tokens, virtual tokens included; None: only the backbone limits it
    prefix_length   number of positions of a key-value prefix in front of the rows
    pooling         what a head reads of an image unless the task says it; None: the backbone's own default

    Raises ValueError if the prompt leaves no room for any text, for a task about text on a backbone that reads images,
    and for a task about images on one that reads text.
    """
    spec = backbone.spec
    limit = _longest_row(spec, virtual_tokens, max_tokens, prefix_length)
    _check_what_is_read(backbone, task)
    image = spec.image
    if image is not None and not task.compares_texts:
        return task.bind(image if pooling is None else replace(image, pooling=pooling))
    text = TextSetting(
        tokenizer=backbone.tokenizer,
        virtual_tokens=virtual_tokens,
        max_tokens=limit,
        closed=spec.closed,
        family=spec.family,
        read_media=spec.read_media,
    )
    return task.bind(text if image is None else ImageTextSetting(image, text))


def _longest_row(
    spec: BackboneSpec, virtual_tokens: int, max_tokens: int | None, prefix_length: int
) -> int | None:
    """How many tokens a row may have, virtual tokens included; None: any number. Raises ValueError if no text fits."""
    positions = spec.positions
    if positions is not None and spec.prefix_counts:
        positions -= prefix_length
    limit = min((n for n in (max_tokens, positions) if n is not None), default=None)
    if limit is not None and virtual_tokens >= limit:
        prefix = f" and a prefix of {prefix_length}" if prefix_length else ""
        raise ValueError(
            f"{virtual_tokens} virtual tokens{prefix} leave no room for text: a row may have {limit} tokens "
            f"(max_tokens={max_tokens}, the backbone's limit is {spec.positions})"
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
