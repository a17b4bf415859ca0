"""What a saved prompt and a run are recognised by: the settings as plain JSON, and the backbone's fingerprint."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from softprompt.backbones.base import Backbone
from softprompt.later import without_later
from softprompt.store.fingerprint import BackboneIdentity, fingerprint


def settings_of(value: Any) -> dict[str, Any]:
    """The fields of a method, task, recipe or backbone's identity as plain JSON, as runs are known by them.

    Without those that came later and have their default, see `softprompt.later`.
    """
    return without_later(value, TypeAdapter(type(value)).dump_python(value, mode="json"))


def identity_of(backbone: Backbone) -> BackboneIdentity:
    """The fingerprint of a backbone, which saved prompts are checked against."""
    spec = backbone.spec
    vocabulary: dict[str, Any] = {}
    if spec.reads_text:
        vocabulary |= backbone.tokenizer.get_vocab()
    if spec.image is not None:
        vocabulary |= spec.image.rule.as_dict()
    return fingerprint(
        backbone.model.config,
        backbone.table,
        name=backbone.name,
        family=backbone.spec.family,
        vocabulary=vocabulary,
    )
