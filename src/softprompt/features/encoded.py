"""Encoded rows with cached features of the layers that stay frozen under a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.data import Row
from softprompt.features.cache import FeatureCache, recall, with_features
from softprompt.features.encodings import Encodings
from softprompt.images import ImagePooling
from softprompt.outputs import EncodedRow, windows_of
from softprompt.tasks.base import TaskEncoder
from softprompt.tasks.room import Room


@dataclass(frozen=True, eq=False)
class FrozenPart:
    """The layers that stay frozen under a prompt, and the cache of their features.

    backbone      the frozen model as it was before the method changed its weights
    cache         None: nothing is looked up or cached, features are computed whenever they are needed
    layers        how many layers from the bottom on are frozen (`Method.frozen_layers`); None: all of them
    reads         which state of each row the prompt is a function of (`PromptModule.reads`); None: of none
    row_features  where these states are kept for the prompt (`PromptedModel.features`)
    batch_size    rows that are computed at once
    """

    backbone: Backbone
    cache: FeatureCache | None
    layers: int | None
    reads: ImagePooling | None
    row_features: RowFeatures
    batch_size: int = 16


def encoded_rows(
    rows: Sequence[Row],
    encoder: TaskEncoder,
    room: Room,
    frozen: FrozenPart,
    *,
    encodings: Encodings | None = None,
    windows: bool = False,
    answer: bool = True,
) -> list[EncodedRow]:
    """The rows in order, encoded and with the cached features of the frozen layers.

    encoder    the task's, bound to `room`
    encodings  of this task on this backbone: lists of rows that were encoded before are not encoded again
    windows    whether long rows are given as their windows, as they are trained on
    answer     whether the rows hold the right answers, and these are encoded too
    """
    encodings = Encodings() if encodings is None else encodings
    encoded = encodings.of(rows, encoder, room, answer=answer)
    if windows and any(row.windows for row in encoded):
        whole = encoded
        encoded = encodings.kept(
            "windows", whole, lambda: [part for row in whole for part in windows_of(row)]
        )
    cache = frozen.cache
    if cache is None:
        return encoded
    if frozen.reads is not None:
        recall(frozen.row_features, encoded, frozen.reads, cache)
    return encodings.kept(
        ("features", frozen.layers, frozen.batch_size),
        encoded,
        lambda: with_features(frozen.backbone, encoded, frozen.layers, cache, batch_size=frozen.batch_size),
    )
