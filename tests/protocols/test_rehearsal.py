"""Which rows of earlier tasks are kept."""

from __future__ import annotations

from collections import Counter

import pytest

from softprompt.protocols.rehearsal import Rehearsal

LABELS = [*"aaaaaaaaaa", *"bbbbbbbbbb", *"cc", *"dddddddddd"]
FIRST, SECOND, THIRD = list(range(10)), list(range(10, 22)), list(range(22, 32))


def classes(rows: list[int]) -> Counter[str]:
    return Counter(LABELS[i] for i in rows)


def test_so_many_rows_of_each_class_and_all_of_a_small_one() -> None:
    memory = Rehearsal(size=3)
    assert classes(memory.rows([*FIRST, *SECOND], LABELS)) == {"a": 3, "b": 3, "c": 2}
    assert memory.rows([], LABELS) == []


def test_rows_kept_for_a_class_stay_when_others_come() -> None:
    memory = Rehearsal(size=3)
    assert set(memory.rows(FIRST, LABELS)) < set(memory.rows([*FIRST, *SECOND], LABELS))
    assert memory.rows([*SECOND, *FIRST], LABELS) == memory.rows([*FIRST, *SECOND], LABELS)


@pytest.mark.parametrize("kind", ["class", "reservoir"])
def test_the_seed_decides(kind: str) -> None:
    drawn = [Rehearsal(size=4, kind=kind, seed=seed).rows([*FIRST, *SECOND], LABELS) for seed in (0, 0, 1)]  # type: ignore[arg-type]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_reservoir_keeps_its_size_and_only_ever_lets_rows_go() -> None:
    memory = Rehearsal(size=6, kind="reservoir")
    assert memory.rows(FIRST[:4], LABELS) == FIRST[:4]
    before, after = memory.rows([*FIRST, *SECOND], LABELS), memory.rows([*FIRST, *SECOND, *THIRD], LABELS)
    assert len(before) == len(after) == 6
    assert set(after) & {*FIRST, *SECOND} <= set(before)


def test_every_row_of_a_reservoir_is_kept_about_as_often() -> None:
    times = Counter(
        row
        for seed in range(600)
        for row in Rehearsal(size=8, kind="reservoir", seed=seed).rows(FIRST * 4, LABELS)
    )
    # 4 of 10 numbers occur four times each: 600 * 8 / 10 = 480 each, standard deviation about 20.
    assert all(390 < times[row] < 570 for row in FIRST)


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 2, "kind": "ring"}, {"rows": 3}])
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"size|kind|rows"):
        Rehearsal(**settings)  # type: ignore[arg-type]
