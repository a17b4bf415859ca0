"""Runs in one JSON file: finished ones are not made again, by this process or by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softprompt.records import once, read_object
from softprompt.records.shared_file import SharedFile


def test_a_run_is_made_once_for_its_settings(tmp_path: Path) -> None:
    file = tmp_path / "runs.json"
    made: list[int] = []

    def work() -> dict[str, int]:
        made.append(1)
        return {"score": len(made)}

    assert [once(file, "a", {"rate": (1, 2)}, work) for _ in range(3)] == [{"score": 1}] * 3
    assert read_object(file) == {"a": {"settings": {"rate": [1, 2]}, "record": {"score": 1}}}
    with pytest.raises(ValueError, match=r"'a' with other settings \(rate\)"):
        once(file, "a", {"rate": 3}, work)
    file.write_text("[]")
    with pytest.raises(ValueError, match="holds a JSON list, expected an object"):
        once(file, "a", {"rate": 3}, work)


def test_a_run_that_another_is_at_is_left_to_it(tmp_path: Path) -> None:
    ours, theirs = SharedFile(tmp_path / "runs.json"), SharedFile(tmp_path / "runs.json")
    with ours.claim("a/0") as mine, theirs.claim("a/0") as also, theirs.claim("b") as other:
        assert (mine, also, other) == (True, False, True)
        theirs.keep("b", {"score": 2})
        ours.keep("a/0", {"score": 1})
    with theirs.claim("a/0") as again:
        assert not again
    assert theirs.runs == {"a/0": {"score": 1}, "b": {"score": 2}}
    assert json.loads((tmp_path / "runs.json").read_text()) == theirs.runs
