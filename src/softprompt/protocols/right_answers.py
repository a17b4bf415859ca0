"""The number of right answers that a prompt gives to the test rows of each task, with features that are computed once."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.backbones.base import Backbone
from softprompt.binding import room_of
from softprompt.data import Row
from softprompt.features.cache import FeatureCache
from softprompt.features.encoded import FrozenPart, encoded_rows
from softprompt.tuned import TunedPrompt


def right_answers(
    tuned: TunedPrompt,
    backbone: Backbone,
    *,
    tests: Sequence[Sequence[Row]],
    allowed: Sequence[str] | None,
    cache: FeatureCache | None,
) -> list[int]:
    """Return the number of right answers for each task; the answer is the likeliest of the `allowed` labels.

    Arguments:
        tuned: the prompt; its task may ask about all classes
        backbone: the one that it was trained on, as it was given; its frozen features are cached
        tests: the test rows of each task
        allowed: labels that may be answered; None: all
        cache: of frozen features; None: nothing is cached
    """
    rows = [row for group in tests for row in group]
    if cache is None:
        found = tuned.predict(rows)
    else:
        frozen = FrozenPart(
            backbone=backbone,
            cache=cache,
            layers=tuned.method.frozen_layers(tuned.backbone.spec),
            reads=tuned.module.reads,
            row_features=tuned.model.features,
        )
        room = room_of(tuned.module, tuned.max_tokens)
        encoded = encoded_rows(rows, tuned.encoder, room, frozen, answer=False)
        found = tuned.encoder.predict(tuned.model, encoded)
    labels = [p.label if allowed is None else max(allowed, key=p.probabilities.__getitem__) for p in found]
    right = iter([label == tuned.task.read_label(row) for label, row in zip(labels, rows, strict=True)])
    return [sum(next(right) for _ in group) for group in tests]
