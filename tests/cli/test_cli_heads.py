"""Tasks with a head from the command line: trained from YAML, evaluated, their answers printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runs import as_json, softprompt, write_backbone, write_config

pytestmark = pytest.mark.filterwarnings(
    "ignore:(every validation|the validation error|no predicted answer|no training):softprompt.SoftpromptWarning"
)
CPU = ("--dtype", "float32", "--device", "cpu")
ROWS = [
    {
        "text": f"the film is {word}",
        "label": label,
        "value": float(label == "pos"),
        "words": ["the", "film", "is", word],
        "tags": ["O", "B-X", "O", "O"],
        "question": "what",
        "context": f"the film is {word}",
        "answers": {"text": ["film"], "answer_start": [4]},
    }
    for word, label in (("good", "pos"), ("bad", "neg"), ("great", "pos"), ("awful", "neg"))
]
TASKS: dict[str, dict[str, Any]] = {
    "sequence-classification": {"template": "{text}", "labels": ["neg", "pos"]},
    "regression": {"template": "{text}"},
    "token-classification": {"tags": ["O", "B-X"]},
    "span-extraction": {},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TASKS)
def test_a_task_with_a_head_runs_from_yaml(name: str, tmp_path: Path) -> None:
    write_backbone(tmp_path / "backbone")
    rows = tmp_path / "head.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    config = write_config(
        tmp_path / "run.yaml",
        task={"name": name, **TASKS[name]},
        method={"name": "linear-probe"},
        data={"train": str(rows), "validation": str(rows)},
    )
    result = softprompt("train", config, "--output", tmp_path / "run", "--quiet")
    assert result.exit_code == 0, result.output
    metrics = as_json("evaluate", tmp_path / "run", "--data", rows, *CPU)["metrics"]
    assert metrics["rows"] == 4
    answers = as_json("predict", tmp_path / "run", "--file", rows, *CPU)["predictions"]
    first = answers[0]
    match name:
        case "sequence-classification":
            assert set(first["probabilities"]) == {"neg", "pos"}
        case "regression":
            assert isinstance(first["answer"], float)
        case "token-classification":
            assert len(first["answer"]) == 4
        case _:
            assert first["answer"]["text"] in "the film is good"
    shown = softprompt("predict", tmp_path / "run", "--file", rows, *CPU)
    assert shown.exit_code == 0, shown.output
