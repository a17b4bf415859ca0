"""Rows as a prompt reads them: encoded once, with what the frozen backbone says of them where there is a cache."""

from __future__ import annotations

from typing import Any

import torch
from torch.testing import assert_close

from softprompt.backbones.row_features import RowFeatures
from softprompt.binding import bind
from softprompt.features.cache import FeatureCache
from softprompt.features.encoded import FrozenPart, encoded_rows
from softprompt.features.encodings import Encodings
from softprompt.outputs import PromptOutput
from softprompt.tasks.room import Room
from tests.tiny.vision import ROWS, TASK, vision_backbone


def parts(cache: FeatureCache | None, **changes: Any) -> tuple[Any, FrozenPart]:
    backbone = vision_backbone()
    settings = {"layers": None, "reads": None, "row_features": RowFeatures(backbone)} | changes
    return bind(backbone, TASK, Room()), FrozenPart(backbone=backbone, cache=cache, **settings)


def test_without_a_cache_rows_are_encoded_and_nothing_else() -> None:
    encoder, frozen = parts(None, reads="class")
    found = encoded_rows(ROWS[:3], encoder, Room(), frozen)
    assert [row.answer for row in found] == [encoder.encode(row).answer for row in ROWS[:3]]
    assert all(row.known is None for row in found)
    assert not len(frozen.row_features)


def test_with_a_cache_rows_know_the_states_that_the_backbone_gives() -> None:
    encoder, frozen = parts(FeatureCache())
    encodings = Encodings()
    found = encoded_rows(ROWS[:3], encoder, Room(), frozen, encodings=encodings)
    plain = [encoder.encode(row) for row in ROWS[:3]]
    known = torch.cat([row.known.states for row in found if row.known is not None])
    assert_close(known, frozen.backbone.states(plain, PromptOutput()), rtol=1e-5, atol=1e-6)
    rows = ROWS[:3]
    first = encoded_rows(rows, encoder, Room(), frozen, encodings=encodings)
    assert encoded_rows(rows, encoder, Room(), frozen, encodings=encodings) is first


def test_a_prompt_that_reads_its_rows_finds_their_states() -> None:
    encoder, frozen = parts(FeatureCache(), layers=0, reads="class")
    found = encoded_rows(ROWS[:3], encoder, Room(), frozen)
    assert len(frozen.row_features) == len({row.media for row in found}) == 3
    assert all(row.known is None for row in found)  # no layer is frozen for the rows themselves


def test_rows_with_and_without_their_answers_are_different_rows() -> None:
    encoder, frozen = parts(None)
    rows, encodings = ROWS[:2], Encodings()
    with_answers = encoded_rows(rows, encoder, Room(), frozen, encodings=encodings)
    without = encoded_rows(rows, encoder, Room(), frozen, encodings=encodings, answer=False)
    assert [row.answer for row in with_answers] == [encoder.encode(row).answer for row in rows]
    assert [row.answer for row in without] == [encoder.encode(row, answer=False).answer for row in rows]
    assert [row.answer for row in without] != [row.answer for row in with_answers]
