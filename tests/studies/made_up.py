"""A study's folder with results that nobody measured: a report of them is known beforehand, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompt.studies import StudyFolder, parse_study, plan
from softprompt.studies.runs import PlannedRun

STUDY: dict[str, Any] = {
    "title": "Made up",
    "backbone": "nothing-is-loaded",
    "task": {
        "name": "text-classification",
        "template": "{text} sentiment",
        "labels": {"neg": " negative", "pos": " positive"},
    },
    "data": {"train": "train.csv", "test": "test.csv"},
    "method": {"name": "prompt-tuning", "length": 2},
    "recipe": {"steps": 4},
}


def ended(run: PlannedRun, score: float, **changes: Any) -> dict[str, Any]:
    """What a run says of itself that has finished with this accuracy on all its data."""
    sources = {**{name: s for name, s in run.values["data"].items() if s}, **run.values.get("domains", {})}
    parts = [name for name in sources if name != "train"] or ["validation"]
    confusion = {"neg": {"neg": 7, "pos": 3}, "pos": {"neg": 0, "pos": 10}}
    return {
        "status": "finished",
        "stage": run.stage,
        "main_metric": "accuracy",
        "metrics": {
            name: {"accuracy": score, "majority_accuracy": 0.5, "confusion": confusion} for name in parts
        },
        "trained_parameters": 96,
        "learning_rate": 0.3,
        "steps_made": 4,
        "seconds": 2.0,
        "wall_seconds": 4.0,
        "cpu_seconds": 3.0,
        "times": {"steps": 2.0, "evaluation": 1.0},
        "peak_memory": {"host": 700 * 2**20, "host_before": 600 * 2**20},
        "rows": {name: {"count": 20, "sha256": f"of {name}"} for name in sources},
        "evaluations": [{"step": 2, "value": score / 2}, {"step": 4, "value": score}],
        "concerns": [],
        "tensors": {"tokens": [2, 48]},
        "backbone_parameters": 1000,
        "environment": {
            "softprompt": "1",
            "commit": "abc",
            "device": "cpu",
            "precision": "float32",
            "backbone": "tiny",
            "versions": {"softprompt": "1", "torch": "2", "transformers": "5"},
            "date": "2026-01-01",
        },
        **changes,
    }


def made_up(
    folder: Path, facts: Callable[[PlannedRun], Mapping[str, Any] | None], **changes: Any
) -> StudyFolder:
    """A folder of STUDY with these changes in which each run has ended with its facts; None: it has not been made."""
    study = parse_study(STUDY | changes)
    found = StudyFolder(folder)
    found.begin(study)
    known: set[str] = set()
    while new := [run for run in plan(study, found.outcome).runs if run.id not in known]:
        for run in new:
            known.add(run.id)
            if (told := facts(run)) is not None:
                found.begin_run(run)
                found.end(run.id, told)
    return found
