"""Parts in which labels keep their shares, and rows that belong together stay together."""

from __future__ import annotations

from collections import Counter

import pytest

from softprompt.data import balanced_part

PARTS = ("train", "validation", "test")
ROWS = [
    {"text": f"text number {i}", "user": f"u{i % 40}", "label": "rare" if i % 10 == 0 else "common"}
    for i in range(200)
]


def test_every_row_is_in_one_part_and_labels_keep_their_shares() -> None:
    parts = {part: balanced_part(ROWS, part, balance="label") for part in PARTS}
    assert sorted(row["text"] for part in parts.values() for row in part) == sorted(
        row["text"] for row in ROWS
    )
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 140, "validation": 30, "test": 30}
    assert all(Counter(row["label"] for row in rows)["rare"] == len(rows) // 10 for rows in parts.values())
    backwards = balanced_part(ROWS[::-1], "test", balance="label")
    assert backwards[::-1] == parts["test"]
    assert balanced_part(ROWS, "test", balance="label", seed=1) != parts["test"]


def test_near_duplicates_and_groups_stay_together() -> None:
    rows = [*ROWS, *({**row, "text": row["text"].upper() + "!"} for row in ROWS)]
    for together in ((), ("text",), ("text", "user")):
        homes: dict[str, set[str]] = {}
        for part in PARTS:
            for row in balanced_part(rows, part, balance="label", together=together):
                homes.setdefault(
                    row["user" if "user" in together else "text"].casefold().rstrip("!"), set()
                ).add(part)
        assert all(len(home) == 1 for home in homes.values()), together


def test_a_label_of_few_rows_trains() -> None:
    rows = [*ROWS, {"text": "alone", "user": "u", "label": "single"}]
    assert rows[-1] in balanced_part(rows, "train", balance="label")
    three = [{"text": f"t{i}", "label": "a"} for i in range(3)]
    assert [len(balanced_part(three, part, balance="label")) for part in PARTS] == [1, 1, 1]


def test_what_cannot_be_divided_is_said() -> None:
    with pytest.raises(ValueError, match="leave none for the part 'test'"):
        balanced_part([{"text": "one"}, {"text": "two"}], "test", balance=None)
    with pytest.raises(ValueError, match="row 0 has no column 'queue'"):
        balanced_part(ROWS, "test", balance="queue")
