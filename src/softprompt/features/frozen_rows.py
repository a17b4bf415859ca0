"""Rows as a tuned prompt reads them, with what the frozen backbone says of them taken from a cache."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.backbones.base import Backbone
from softprompt.data import Row
from softprompt.features.cache import FeatureCache, recall, with_features
from softprompt.outputs import EncodedRow
from softprompt.tuned import TunedPrompt


def encoded_rows(
    tuned: TunedPrompt, backbone: Backbone, rows: Sequence[Row], cache: FeatureCache | None, *, answer: bool
) -> list[EncodedRow]:
    """For `encoder.predict` and `evaluate`, in order.

    backbone  that the prompt was trained on, as it was before the method changed its weights
    cache     None: nothing is looked up, and whatever is needed is computed as it is needed
    answer    whether the rows hold the right answers
    """
    encoded = [tuned.encoder.encode(row, answer=answer) for row in rows]
    if cache is None:
        return encoded
    known = with_features(backbone, encoded, tuned.method.frozen_layers(tuned.backbone.spec), cache)
    if tuned.module.reads is not None:
        recall(tuned.model.features, known, tuned.module.reads, cache)
    return known
