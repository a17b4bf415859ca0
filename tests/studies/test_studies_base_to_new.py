"""Studies of classes of which half are learned: they give the protocol's result, resume, and show both averages of H."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.protocols import harmonic_mean
from softprompt.studies import StudyFolder, Worker, conduct, parse_study, plan
from softprompt.studies.report import write_report
from softprompt.studies.results import read_results
from softprompt.studies.tables import half_table
from softprompt.training.loop import train
from tests.tiny.dual import dual_backbone
from tests.tiny.vision import picture

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200), "green": (60, 200, 60), "grey": (128, 128, 128)}
COOP = {"name": "coop", "length": 2}
TASK = {"name": "image-text-classification", "labels": list(COLOURS), "template": "a picture of a {}."}


def half_study(folder: Path, **changes: Any) -> dict[str, Any]:
    rows = []
    for i in range(4):
        for name, rgb in COLOURS.items():
            picture(*rgb, seed=i).save(folder / f"{name}-{i}.png")
            rows.append({"image": str(folder / f"{name}-{i}.png"), "label": name})
    source = folder / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "backbone": "tiny-clip",
        "task": TASK,
        "data": {"train": str(source), "test": str(source)},
        "recipe": {"steps": 3, "batch_size": 4, "learning_rate": 0.5, "checkpoint_every": 1},
        "protocol": {"name": "base-to-new", "shots": 2},
        "axes": {"method": {"zero-shot": {"method": "zero-shot", "seeds": [0]}, "CoOp": {"method": COOP}}},
        "seeds": [0, 1],
        **changes,
    }


def made(values: dict[str, Any], folder: StudyFolder) -> None:
    study = parse_study(values)
    folder.begin(study)
    conduct(study, folder, Worker(lambda config: dual_backbone()))


@pytest.mark.slow
def test_a_study_finds_what_the_protocol_finds_and_shows_both_averages_of_h(tmp_path: Path) -> None:
    values = half_study(tmp_path, together=4)
    folder = StudyFolder(tmp_path / "out")
    made(values, folder)
    results = read_results(folder)
    assert not results.failed
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    task = sp.ImageTextClassification(labels=list(COLOURS), template="a picture of a {}.")
    recipe = sp.Recipe(steps=3, batch_size=4, learning_rate=0.5)
    alone = sp.base_to_new_runs(
        dual_backbone(), task, sp.CoOp(length=2), rows, rows, shots=2, seeds=(0, 1), recipe=recipe
    )
    found = [r.outcome.facts["metrics"]["test"] for r in results.of("CoOp")]
    for record, metrics in zip(alone.records, found, strict=True):
        assert {name: metrics[name] for name in ("base", "new", "harmonic_mean")} == {
            name: record[name] for name in ("base", "new", "harmonic_mean")
        }
    assert found[0]["base_labels"] == ["red", "blue"]
    assert results.mean("CoOp") == pytest.approx(alone.mean_of_harmonic_means)
    assert not results.trains("zero-shot")
    heads, lines = half_table(results)
    assert heads == ["", "base", "new", "mean of H", "H of means"]
    assert lines[1][-1] == f"{harmonic_mean(alone.base, alone.new):.3f}"
    written = {path.name for path in write_report(folder, tmp_path / "report")}
    assert {"halves.csv", "halves.md", "halves.tex"} <= written
    assert ">Base and new classes</h2>" in (tmp_path / "report/index.html").read_text()


def test_a_killed_run_resumes_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = half_study(tmp_path, axes={"method": [COOP]}, seeds=[0])
    made(values, StudyFolder(tmp_path / "whole"))
    killed = StudyFolder(tmp_path / "killed")
    begun: list[Path] = []

    def killed_after_training(*arguments: Any) -> Any:
        train(*arguments)
        begun.extend((tmp_path / "killed").rglob("checkpoint/0/*"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("softprompt.fitting.one.training.train", killed_after_training)
        with pytest.raises(KeyboardInterrupt):
            made(values, killed)
    assert begun
    made(values, killed)
    both = [
        read_results(folder).finals[0].outcome.facts for folder in (StudyFolder(tmp_path / "whole"), killed)
    ]
    assert both[0]["metrics"] == both[1]["metrics"]
    [run_id] = [path.name for path in (tmp_path / "whole" / "runs").iterdir()]
    losses = [
        [r["loss"] for r in StudyFolder(tmp_path / name).history(run_id)] for name in ("whole", "killed")
    ]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert 0 < both[0]["times"]["steps"] == pytest.approx(both[0]["seconds"])
    assert both[0]["times"]["evaluation"] > 0
    assert not list((tmp_path / "killed").rglob("checkpoint"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol.shots": True}, "protocol.shots: Input should be a valid integer; found True"),
        ({"task.labels": ["red", "blue", "green"]}, "four are needed"),
        ({"data.validation": "rows.csv"}, "new classes have no validation rows"),
        ({"data.test": None}, "data.test is missing"),
        ({"protocol.domains": {"other": "rows.csv"}}, "unknown key 'protocol.domains'"),
        ({"task": {"name": "image-classification", "labels": list(COLOURS)}}, "described by their names"),
    ],
)
def test_what_does_not_fit_two_halves_is_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    values = half_study(tmp_path, axes={"way": {"this": {"method": "coop", **changes}}})
    with pytest.raises(ValueError, match=re.escape(told)):
        plan(parse_study(values), lambda run: None)
