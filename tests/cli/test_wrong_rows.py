"""evaluate --errors: the wrong rows, those first that the prompt is surest of."""

from __future__ import annotations

from pathlib import Path

from softprompt.data import load_rows
from tests.cli.runs import ROWS, as_json, softprompt, write_rows


def test_wrong_rows_are_written_the_confident_ones_first(trained: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": {"pos": "neg", "neg": "pos"}[row["label"]]} for row in ROWS] + ROWS
    data = write_rows(tmp_path / "rows.jsonl", rows)
    values = as_json("evaluate", trained, "--data", data, "--errors", tmp_path / "wrong.csv")
    found = load_rows(tmp_path / "wrong.csv")
    assert (
        len(found) == len(ROWS) == values["metrics"]["wrong_rows"]
    )  # each text stands there with both labels
    assert all(row["right"] == row["label"] != row["predicted"] for row in found)
    surest = [float(row["confidence"]) for row in found]
    assert surest == sorted(surest, reverse=True)
    refused = softprompt("evaluate", trained, "--data", data, "--errors", tmp_path / "wrong.txt")
    assert refused.exit_code == 1
    assert "--errors is" in refused.output
