"""A small study on a tiny backbone, and what of its result must be the same however it was made."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from softprompt.studies import StudyFolder, plan, read_study
from tests.cli.runs import write_backbone, write_rows

OF_THE_CLOCK = (
    "wall_seconds",
    "cpu_seconds",
    "seconds",
    "times",
    "peak_memory",
    "environment",
    "sha256",
    "history_sha256",
    "prompt_sha256",  # prompt.json says how long the training took
    "traceback",
)


def write_study(path: Path, **changes: Any) -> Path:
    """Two methods, two seeds, a few steps; the backbone and the rows lie beside the file."""
    if not (path.parent / "backbone").exists():
        write_backbone(path.parent / "backbone")
    rows = str(write_rows(path.with_name("rows.jsonl")))
    values = {
        "title": "Two methods",
        "backbone": {"name": str(path.parent / "backbone"), "dtype": "float32", "device": "cpu"},
        "task": {
            "name": "text-classification",
            "template": "{text} sentiment",
            "labels": {"neg": " negative", "pos": " positive"},
        },
        "data": {"train": rows, "validation": rows, "test": rows},
        "recipe": {"steps": 4, "batch_size": 4, "evaluate_every": 2},
        "axes": {"method": ["zero-shot", {"name": "prompt-tuning", "length": 2}]},
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False), encoding="utf-8")
    return path


def results(study: Path, output: Path) -> dict[str, Any]:
    """By run: what it found, the history of its losses, the bytes of its prompt; without times and the like."""
    folder = StudyFolder(output)
    found = {}
    for run in plan(read_study(study), folder.outcome).runs:
        outcome = folder.outcome(run.id)
        assert outcome is not None, run.id
        facts = {key: value for key, value in outcome.facts.items() if key not in OF_THE_CLOCK}
        history = [{k: v for k, v in record.items() if k != "seconds"} for record in folder.history(run.id)]
        prompt = folder.run(run.id) / "prompt" / "prompt.safetensors"
        digest = hashlib.sha256(prompt.read_bytes()).hexdigest() if prompt.exists() else None
        found[run.id] = json.loads(json.dumps([facts, history, digest]))
    assert {path.name for path in (output / "runs").iterdir()} == set(found)  # nothing doubled
    return found
