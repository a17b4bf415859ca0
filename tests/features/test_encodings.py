"""Rows are encoded once for all runs that read them alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from softprompt.features.encodings import Encodings
from softprompt.outputs import EncodedRow
from softprompt.tasks.room import Room


class Counting:
    """An encoder that counts what it was given."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, row: Any, *, answer: bool = True) -> EncodedRow:
        self.calls += 1
        return EncodedRow((row["id"],) * 4)


@pytest.fixture
def encoder() -> Any:
    return Counting()


def rows(count: int) -> list[dict[str, int]]:
    return [{"id": i} for i in range(count)]


def test_the_same_rows_are_encoded_once(encoder: Any) -> None:
    kept, mine = Encodings(), rows(3)
    first = kept.of(mine, encoder, Room(length=2))
    assert kept.of(mine, encoder, Room(length=2)) is first
    assert encoder.calls == 3


def test_rows_with_other_room_and_equal_rows_of_another_list_are_encoded_anew(encoder: Any) -> None:
    kept, mine = Encodings(), rows(3)
    kept.of(mine, encoder, Room(length=2))
    kept.of(mine, encoder, Room(length=3))
    kept.of(rows(3), encoder, Room(length=2))  # two lists alike may be changed apart
    assert encoder.calls == 9


def test_lists_that_were_asked_for_longest_ago_go_first(encoder: Any) -> None:
    kept = Encodings(memory=8 * 4 * 5)  # five rows of four tokens
    first, second, third = rows(2), rows(2), rows(3)
    for some in (first, second, first, third):
        kept.of(some, encoder, Room())
    assert encoder.calls == 7
    kept.of(first, encoder, Room())
    assert encoder.calls == 7
    kept.of(second, encoder, Room())
    assert encoder.calls == 9


def test_a_list_that_is_larger_than_all_room_leaves_the_others_alone(encoder: Any) -> None:
    kept, small = Encodings(memory=8 * 4 * 2), rows(2)
    kept.of(small, encoder, Room())
    assert len(kept.of(rows(9), encoder, Room())) == 9
    kept.of(small, encoder, Room())
    assert encoder.calls == 2 + 9


def test_what_rows_carry_beside_tokens_takes_room() -> None:
    kept = Encodings(memory=1000)
    media = torch.zeros(3, 8, 8)
    made: list[int] = []

    def encoded() -> list[EncodedRow]:
        made.append(1)
        return [EncodedRow((), media=media)]

    mine = rows(1)
    for _ in range(2):
        kept.kept("images", mine, encoded)
    assert len(made) == 1
    small = Encodings(memory=700)
    for _ in range(2):
        small.kept("images", mine, encoded)
    assert len(made) == 3
