"""From a fresh table to a tuned prompt in two commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.runs import as_json, softprompt, write_backbone


def test_two_commands_from_a_table_to_a_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "backbone")
    lines = [f"the {t} is {w} {i},{w}" for i in range(6) for t in ("film", "book") for w in ("good", "bad")]
    Path("moods.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    begun = as_json("init", "moods.csv", "--backbone", "backbone")
    assert begun["config"] == "moods.yaml"
    assert {"task", "task.labels", "backbone", "method", "data"} <= {d["key"] for d in begun["decisions"]}
    assert any("test rows" in warning for warning in begun["warnings"])
    trained = as_json("train", "moods.yaml", "recipe.steps=2", "--quiet", "--device", "cpu")
    assert set(trained["metrics"]) == {"validation", "test"}
    assert json.loads(Path("runs/moods/metrics.json").read_text())["rows"] == {
        "train": 16,
        "validation": 4,
        "test": 4,
    }
    again = softprompt("init", "moods.csv")
    assert again.exit_code == 1
    assert "moods.yaml exists: give --overwrite" in " ".join(again.output.split())
