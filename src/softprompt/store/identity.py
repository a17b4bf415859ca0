"""The identity of a saved prompt and of a run: its settings as plain JSON, and the backbone's fingerprint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from pydantic import TypeAdapter

from softprompt.backbones.base import Backbone
from softprompt.concerns import warn_of
from softprompt.images import ImageRule
from softprompt.later import without_later
from softprompt.store.fingerprint import BackboneIdentity, fingerprint, tokenizer_digest


def settings_of(value: Any) -> dict[str, Any]:
    """The fields of a method, task, recipe or backbone's identity as plain JSON, as runs are known by them.

    Without those that came later and have their default, see `softprompt.later`.
    """
    return without_later(value, TypeAdapter(type(value)).dump_python(value, mode="json"))


def named_settings(value: Any) -> dict[str, Any]:
    """The settings of a method or a task behind its name."""
    return {"name": value.name, **settings_of(value)}


def identity_of(backbone: Backbone) -> BackboneIdentity:
    """The fingerprint of a backbone, which saved prompts are checked against."""
    image = backbone.spec.image
    return fingerprint(
        backbone.model.config,
        backbone.table,
        name=backbone.name,
        family=backbone.spec.family,
        vocabulary=_read_by(backbone, None if image is None else image.rule),
    )


def recognised(trained: BackboneIdentity, backbone: Backbone) -> BackboneIdentity:
    """The fingerprint of a backbone; its tokenizer counts as the one of `trained` if only tokens were added to that.

    Added tokens come behind all others and leave their ids as they were, so that a prompt reads every text as before that
    holds none of them.
    """
    found = identity_of(backbone)
    if trained.tokenizer_digest in (None, found.tokenizer_digest) or not backbone.spec.reads_text:
        return found
    image = backbone.spec.image
    vocabulary = _read_by(backbone, None if image is None else image.rule)
    ids = backbone.tokenizer.get_vocab()
    for _, token in sorted(((i, token) for token, i in ids.items()), reverse=True)[:_MOST_ADDED]:
        if token not in backbone.tokenizer.get_added_vocab():
            break
        del vocabulary[token]
        if tokenizer_digest(vocabulary) == trained.tokenizer_digest:
            return replace(found, tokenizer_digest=trained.tokenizer_digest)
    return found


_MOST_ADDED = 16  # each costs a digest of the whole vocabulary


def reading_as_before(backbone: Backbone, remembered: str | None, began: str) -> Backbone:
    """The backbone, with its processor's former rule for images if the digest belongs to that rule; otherwise unchanged.

    Prompts and runs that began with such pixels keep them; SoftpromptWarning says so.
    remembered: the tokenizer_digest of its identity. began: what it was, "the prompt was trained"
    """
    image = backbone.spec.image
    if image is None or image.former is None or not isinstance(backbone, _TakesARule):
        return backbone
    if remembered != tokenizer_digest(_read_by(backbone, image.former)):
        return backbone
    sentence = (
        f"{began} on images that an earlier version prepared otherwise than the image processor of {backbone.name} does: it"
        f" still reads them so, by {image.former}; only what is trained anew has the processor's own pixels"
    )
    warn_of([sentence])
    return backbone.with_rule(image.former)


@runtime_checkable
class _TakesARule(Protocol):
    def with_rule(self, rule: ImageRule) -> Backbone: ...


def _read_by(backbone: Backbone, rule: ImageRule | None) -> dict[str, Any]:
    """The parts that turn rows into model input: the tokenizer's pieces and the rule for images."""
    vocabulary: dict[str, Any] = {}
    if backbone.spec.reads_text:
        vocabulary |= backbone.tokenizer.get_vocab()
    if rule is not None:
        vocabulary |= rule.as_dict()
    return vocabulary
