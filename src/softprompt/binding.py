"""Backbone, task, method and rows brought together, for training, use and saving alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from softprompt import store
from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import plain_name
from softprompt.data import load_rows
from softprompt.images import ImagePooling
from softprompt.later import without_later
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts import Method
from softprompt.tasks.base import ImageTextSetting, Row, Task, TaskEncoder, TextSetting

Rows = Sequence[Row] | str | Path


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
    """The task's metrics of a model over rows with answers; encoded: the same rows, where they are encoded already."""
    encoded = [encoder.encode(row) for row in rows] if encoded is None else encoded
    predictions = encoder.predict(model, encoded, batch_size=batch_size, on_batch=on_batch)
    metrics = task.judge(encoder, predictions, rows)
    with torch.no_grad():
        return metrics | encoder.likelihood_metrics(model, encoded, batch_size=batch_size)


def bind(
    backbone: Backbone,
    task: Task,
    virtual_tokens: int,
    max_tokens: int | None,
    prefix_length: int = 0,
    pooling: ImagePooling | None = None,
) -> TaskEncoder:
    """The task's encoder for this backbone, behind a key-value prefix of `prefix_length` positions.

    pooling: what a head reads of an image where the task does not say, in the place of the backbone's own.

    Raises ValueError if the prompt leaves no room for any text, and for a task about text on a backbone that reads images
    or the other way round.
    """
    positions = backbone.spec.positions
    if positions is not None and backbone.spec.prefix_counts:
        positions -= prefix_length
    limit = min((n for n in (max_tokens, positions) if n is not None), default=None)
    if limit is not None and virtual_tokens >= limit:
        prefix = f" and a prefix of {prefix_length}" if prefix_length else ""
        raise ValueError(
            f"{virtual_tokens} virtual tokens{prefix} leave no room for text: a row may have {limit} tokens "
            f"(max_tokens={max_tokens}, the backbone's limit is {backbone.spec.positions})"
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
        return task.bind(spec.image if pooling is None else replace(spec.image, pooling=pooling))
    text = TextSetting(backbone.tokenizer, virtual_tokens, limit, spec.closed, spec.family, spec.read_media)
    return task.bind(text if spec.image is None else ImageTextSetting(spec.image, text))


def read_rows(source: Rows, split: str | None = None) -> list[Row]:
    """Rows from a list of dictionaries or anything that `softprompt.data.load_rows` reads."""
    return list(load_rows(source, split))


def as_row(task: Task, value: Any) -> Row:
    """A string, or an image in whatever form, as the row of a task with one field; a row as it is."""
    if isinstance(value, Mapping):
        return value
    if len(task.fields) != 1:
        raise ValueError(
            f"the template needs the columns {list(task.fields)}: pass a dictionary with them, not a string"
        )
    name = task.fields[0]
    return {task.columns.get(name, name): value}


def trained_tensors(
    module: nn.Module, model: nn.Module, head: nn.Module | None = None
) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient: of the prompt as `prompt.*`, also `head.*`, of the backbone as `backbone.*`."""
    named = [("prompt", module), ("head", head), ("backbone", model)]
    return {
        f"{part}.{name}": p
        for part, owner in named
        if owner is not None
        for name, p in owner.named_parameters()
        if p.requires_grad
    }


def changed_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of a backbone's model that a method trains, as `backbone.*`: they, and no others, require a gradient."""
    return {f"backbone.{plain_name(name)}": p for name, p in model.named_parameters() if p.requires_grad}


def named_state(module: nn.Module, model: nn.Module, head: nn.Module | None) -> dict[str, Tensor]:
    """All tensors of the prompt as `prompt.*` and of the head as `head.*`, buffers included, and the `changed_weights`."""
    parts = [("prompt", module), ("head", head)]
    named = {
        f"{part}.{name}": tensor
        for part, owner in parts
        if owner is not None
        for name, tensor in owner.state_dict().items()
    }
    return named | {name: parameter.detach() for name, parameter in changed_weights(model).items()}


def load_state(state: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy a `named_state` into another one's tensors. Raises ValueError unless names and shapes are the same."""
    found, expected = ({name: tuple(t.shape) for name, t in side.items()} for side in (state, into))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"start does not fit the method, task and backbone: its {name} is {found.get(name, 'missing')}, and here it "
                f"is {expected.get(name, 'missing')}; a prompt that was loaded from a folder can start only methods that "
                "fold nothing away when they save"
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(state[name])


def settings_of(value: Any) -> dict[str, Any]:
    """The fields of a method, task, recipe or backbone's identity as plain JSON, as runs are known by them.

    Without those that came later and have their default, see `softprompt.later`.
    """
    return without_later(value, TypeAdapter(type(value)).dump_python(value, mode="json"))


def identity_of(backbone: Backbone) -> store.BackboneIdentity:
    """The fingerprint that a saved prompt is checked against."""
    model, image = backbone.model, backbone.spec.image
    vocabulary: dict[str, Any] = {}
    if image is None or backbone.spec.vision is not None:
        vocabulary |= backbone.tokenizer.get_vocab()
    if image is not None:
        vocabulary |= image.rule.as_dict()
    return store.fingerprint(
        model.config,
        backbone.table,
        name=backbone.name,
        family=backbone.spec.family,
        vocabulary=vocabulary,
    )
