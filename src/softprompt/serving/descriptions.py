"""What clients are told of a served prompt."""

from __future__ import annotations

from typing import Any

from softprompt.files import finite
from softprompt.serving.registry import Entry


def described(entry: Entry, lane: str, *, is_backbone: bool) -> dict[str, Any]:
    """A prompt as a model of OpenAI's list, with what softprompt knows beside: task, labels, fields, metrics.

    lane: "score", "continuous", or "grouped", which is slower where many prompts write at once
    """
    tuned = entry.tuned
    model: dict[str, Any] = {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": "softprompt",
        "lane": lane,
        "backbone": tuned.backbone.name,
    }
    if is_backbone:
        chats = bool(tuned.backbone.tokenizer.chat_template)
        return {**model, "task": "text-generation", "fields": ["text"], "chat": chats, "is_backbone": True}
    task: Any = tuned.task
    return {
        **model,
        "root": tuned.backbone.name,
        "task": task.name,
        "labels": list(task.label_words),
        "fields": [task.columns.get(name, name) for name in task.fields],
        "images": task.about_images or task.compares_texts,
        "template": getattr(task, "template", None),
        "method": tuned.method.name,
        "virtual_tokens": tuned.module.length,
        "prefix_positions": tuned.module.prefix_length,
        "trained_head": tuned.head is not None,
        "can_compare": task.outputs is None and tuned.backbone.spec.image is None,
        "metrics": finite(dict(tuned.metrics)),
        "is_backbone": False,
    }
