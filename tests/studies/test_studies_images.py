"""Studies of images: what is frozen computed once for all runs, classes in tasks, rows of some classes alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from softprompt.errors import SoftpromptWarning
from softprompt.protocols import Rehearsal
from softprompt.studies import StudyFolder, plan, read_study
from softprompt.studies.figures import plots
from softprompt.studies.results import read_results
from tests.cli.runs import as_json
from tests.cli.test_cli_images import write_tower
from tests.tiny.vision import picture

COLOURS = {"red": (180, 80, 90), "green": (90, 180, 80), "blue": (80, 90, 180), "grey": (120, 120, 120)}


def write_image_study(path: Path, **changes: Any) -> Path:
    """Probes, prompts that are chosen, prompts that are not; four colours; everything lies beside the file."""
    folder = path.parent
    if not (folder / "backbone").exists():
        write_tower(folder / "backbone", "dinov2")
    rows = []
    for i in range(12):
        for label, (red, green, blue) in COLOURS.items():
            name = folder / f"{label}-{i}.png"
            picture(red, green, blue, seed=i).save(name)
            rows.append({"image": str(name), "label": label})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = str(folder / "rows.jsonl")
    values: dict[str, Any] = {
        "backbone": {"name": str(folder / "backbone"), "dtype": "float32", "device": "cpu"},
        "task": {"name": "image-classification", "labels": list(COLOURS)},
        "data": {"train": {"source": source, "limit": 24}, "validation": source, "test": source},
        "recipe": {"steps": 4, "batch_size": 4, "evaluate_every": 2},
        "axes": {"method": ["linear-probe", {"name": "l2p", "pool": 4, "length": 2, "top": 2}, "vpt"]},
        "seeds": [0, 1],
    }
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False), encoding="utf-8")
    return path


def made(study: Path, output: Path) -> dict[str, Any]:
    """What every run of a study found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SoftpromptWarning)  # a few steps learn little
        as_json("compare", study, "-o", output, "--quiet")
    folder = StudyFolder(output)
    found = {}
    for run in plan(read_study(study), folder.outcome).runs:
        outcome = folder.outcome(run.id)
        assert outcome is not None
        found[run.id] = outcome.facts["metrics"]
    return found


@pytest.mark.parametrize("changes", [{}, {"protocol": {"name": "class-incremental", "tasks": 2}}])
@pytest.mark.slow
def test_a_folder_of_features_changes_neither_results_nor_names(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    plain = made(write_image_study(tmp_path / "study.yaml", **changes), tmp_path / "plain")
    cache = tmp_path / "features"
    study = write_image_study(tmp_path / "study.yaml", cache_features=str(cache), **changes)
    assert made(study, tmp_path / "cached") == plain
    files = set(cache.iterdir())
    assert files
    made(study, tmp_path / "again")
    assert set(cache.iterdir()) == files  # other runs compute nothing more


@pytest.mark.slow
def test_the_logits_that_compete_in_tasks_are_a_setting(tmp_path: Path) -> None:
    study = write_image_study(
        tmp_path / "study.yaml",
        axes={"way": {"present": {}, "all": {"protocol.logits": "all"}, "joint": {"protocol.tasks": 1}}},
        method="linear-probe",
        protocol={"name": "class-incremental", "tasks": 2},
        recipe={"steps": 30, "batch_size": 8, "learning_rate": 0.05},
    )
    made(study, tmp_path / "out")
    results = read_results(StudyFolder(tmp_path / "out"))
    scores = {line: results.mean(line) for line in results.lines}
    assert scores["joint"] > scores["all"]  # type: ignore[operator]
    names = {r.run.id for r in results.finals}
    assert len(names) == 6
    written = [r.run.values.get("class_logits") for r in results.finals if r.line != "all"]
    assert set(written) == {None}  # the default is not written out: earlier runs keep their names


@pytest.mark.slow
def test_order_answers_and_rehearsal_of_tasks_are_settings(tmp_path: Path) -> None:
    study = write_image_study(
        tmp_path / "study.yaml",
        axes={"way": {"natural": {}, "rehearsed": {"protocol.rehearsal": {"size": 2}}}},
        method={"name": "l2p", "pool": 4, "length": 2, "top": 2},
        seeds=[0],
        protocol={"name": "class-incremental", "tasks": 2, "order": "natural", "answers": "seen"},
        recipe={"steps": 3, "batch_size": 4},
    )
    found = made(study, tmp_path / "out")
    for metrics in found.values():
        assert metrics["test"]["tasks"] == [["red", "green"], ["blue", "grey"]]
        assert metrics["test"]["majority_accuracy"] == 0.25
        assert [sum(chosen) for chosen in metrics["test"]["chosen"]] == [3 * 4 * 2] * 2
    results = read_results(StudyFolder(tmp_path / "out"))
    assert {r.run.settings().protocol.rehearsal for r in results.finals} == {None, Rehearsal(size=2)}
    assert len({r.run.id for r in results.finals}) == 2
    [drawn] = [plot for plot in plots(results) if plot.name == "prompt-selection"]
    assert "prompts were ever chosen" in drawn.alternative
    assert "<svg" in drawn.svg()
    bad = {
        "protocol.order: Input should be 'seed' or 'natural'; found 'drawn'": {"order": "drawn"},
        "protocol.rehearsal.size: Input should be greater than 0; found 0": {"rehearsal": {"size": 0}},
        "protocol.logits: Input should be 'present', 'seen' or 'all'; found 'some'": {"logits": "some"},
    }
    for message, settings in bad.items():
        changes = {"protocol": {"name": "class-incremental", "tasks": 2, **settings}}
        with pytest.raises(ValueError, match=message):
            plan(read_study(write_image_study(tmp_path / "bad.yaml", **changes)), lambda run: None)
