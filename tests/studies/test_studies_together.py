"""Runs of a study in one batch: each gives its own result, even if others diverge or the process is killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from softprompt.backbones.loading import load_backbone
from softprompt.fitting.run_config import BackboneConfig
from softprompt.studies import Outcome, PlannedRun, Study, StudyFolder, Worker, conduct, plan, read_study
from softprompt.studies.batches import batches_of
from softprompt.studies.engine import Quiet, make
from softprompt.training.progress import Progress, Record, Silent
from tests.cli.runs import as_json, softprompt
from tests.kills import NEVER, killed
from tests.studies.small import write_study

CLOSE = 1e-6  # the backbone computes in float64, prompts and optimizers in float32
METHOD = {"name": "prompt-tuning", "length": 2}


def open_tiny(config: BackboneConfig) -> Any:
    return load_backbone(config.name, dtype="float64", device="cpu")


def write(path: Path, **changes: Any) -> Path:
    """Four runs of one method that differ in seed and learning rate."""
    values: dict[str, Any] = {"axes": {"recipe.learning_rate": [0.1, 0.3]}, "method": METHOD}
    backbone = {"name": str(path.parent / "backbone"), "dtype": "float64", "device": "cpu"}
    return write_study(path, **values | {"backbone": backbone} | changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and, in `out` beside it, its folder, made run by run; tests leave both as they are."""
    study = write(tmp_path_factory.mktemp("alone") / "study.yaml")
    conduct(read_study(study), StudyFolder(study.parent / "out"), Worker(open_tiny))
    return study


def together(study: Path, most: int = 4) -> Path:
    """The same study, its runs made in batches."""
    copy = study.with_name(f"together-{most}.yaml")
    copy.write_text(study.read_text() + f"together: {most}\n")
    return copy


class Seen(Quiet):
    """What was begun, and how it ended."""

    def __init__(self, told: Progress | None = None) -> None:
        self.begun: list[int] = []
        self.ends: dict[str, Outcome] = {}
        self.notes: list[str] = []
        self.told = told or Silent()

    def begins(self, runs: Sequence[PlannedRun]) -> Progress:
        self.begun.append(len(runs))
        return self.told

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        assert run.id not in self.ends
        self.ends[run.id] = outcome

    def note(self, message: str) -> None:
        self.notes.append(message)


def runs_of(study: Study, folder: StudyFolder) -> list[PlannedRun]:
    return list(plan(study, folder.outcome).runs)


def assert_same(study: Path, out: Path, expected: Path) -> None:
    ours, theirs = StudyFolder(out), StudyFolder(expected)
    runs = runs_of(read_study(study), ours)
    assert {path.name for path in (out / "runs").iterdir()} == {run.id for run in runs}
    for run in runs:
        found, wanted = ours.outcome(run.id), theirs.outcome(run.id)
        assert found is not None
        assert wanted is not None
        assert found.facts["metrics"] == wanted.facts["metrics"]
        for name in ("status", "steps_made", "best_step", "rows", "evaluations", "trained_parameters"):
            assert found.facts[name] == wanted.facts[name], name
        for name in ("loss", "lr", "gradient_norm", "tokens"):
            losses, usual = ([r[name] for r in f.history(run.id)] for f in (ours, theirs))
            assert losses == pytest.approx(usual, abs=CLOSE)
        prompts = [load_file(f.run(run.id) / "prompt" / "prompt.safetensors") for f in (ours, theirs)]
        assert_close(*prompts, rtol=0, atol=CLOSE)
        assert not (ours.run(run.id) / "checkpoint").exists()


@pytest.mark.slow
def test_runs_that_are_made_together_are_those_that_are_made_alone(alone: Path, tmp_path: Path) -> None:
    seen, out = Seen(), tmp_path / "out"
    conduct(read_study(together(alone)), StudyFolder(out), Worker(open_tiny), show=seen)
    assert seen.begun == [4]
    assert {outcome.facts["together"] for outcome in seen.ends.values()} == {4}
    assert_same(alone, out, alone.parent / "out")


@pytest.mark.slow
def test_an_interrupted_batch_resumes(alone: Path, tmp_path: Path) -> None:
    class Stop(Silent):
        updates = 0

        def update(self, record: Record) -> None:
            self.updates += 1
            if self.updates == 4 * 2 + 3:  # in the third step, between two runs of the batch
                raise KeyboardInterrupt

    study, folder = read_study(together(alone)), StudyFolder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        conduct(study, folder, Worker(open_tiny), show=Seen(Stop()))
    assert len([*folder.path.rglob("checkpoint.safetensors")]) == 4
    conduct(study, StudyFolder(folder.path), Worker(open_tiny))
    assert_same(alone, folder.path, alone.parent / "out")


@pytest.mark.slow
def test_a_batch_that_is_killed_again_and_again_loses_nothing(alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert killed(together(alone), out, "in turn", [9, 23, 31, 14, NEVER]) >= 3
    assert_same(alone, out, alone.parent / "out")
    assert not (out / "set-aside").exists()


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_left_out_of_its_batch(alone: Path, tmp_path: Path) -> None:
    study, folder, worker, seen = (
        read_study(together(alone)),
        StudyFolder(tmp_path),
        Worker(open_tiny),
        Seen(),
    )
    folder.begin(study)
    runs = runs_of(study, folder)
    with StudyFolder(tmp_path).claim(runs[1].id) as mine:
        assert mine
        assert make(study, runs, folder, worker, seen) == 3
    assert make(study, runs, folder, worker, seen) == 4
    assert seen.begun == [3, 1]
    assert_same(alone, tmp_path, alone.parent / "out")


def test_one_that_diverges_is_reported_alone(alone: Path, tmp_path: Path) -> None:
    rates = {"usual": 0.1, "wild": 1.7e308}
    axis = {name: {"recipe.learning_rate": rate, "recipe.clip_norm": None} for name, rate in rates.items()}
    study = write(tmp_path / "study.yaml", axes={"rate": axis}, together=2, seeds=[0])
    seen = Seen()
    conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny), show=seen)
    assert seen.begun == [2]
    usual, wild = seen.ends.values()
    assert (usual.status, wild.status) == ("finished", "diverged")
    assert wild.facts["error"]["type"] == "TrainingDiverged"
    assert "training diverged at step" in wild.facts["traceback"]


def test_methods_that_cannot_share_a_pass_are_made_one_after_the_other(tmp_path: Path) -> None:
    study = write(tmp_path / "study.yaml", axes={"method": ["zero-shot", METHOD]}, together=2)
    seen = Seen()
    conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny), show=seen)
    assert seen.begun == [2, 1, 1, 2]
    assert [outcome.status for outcome in seen.ends.values()] == ["finished"] * 4
    assert [outcome.facts["together"] for outcome in seen.ends.values()] == [1, 1, 2, 2]
    [note] = seen.notes
    assert "2 runs are made one after the other" in note
    assert "zero-shot trains no tensors" in note


@pytest.mark.slow
def test_the_command_says_the_same_of_runs_that_were_made_together(alone: Path, tmp_path: Path) -> None:
    assert as_json("compare", together(alone, 3), "-o", tmp_path / "out")["runs"] == 4
    assert softprompt("report", tmp_path / "out").exit_code == 0
    assert_same(alone, tmp_path / "out", alone.parent / "out")


def test_batches_hold_runs_of_one_method_on_the_same_rows(tmp_path: Path) -> None:
    axes = {
        "method": [METHOD, {"name": "prompt-tuning", "length": 3}, "dept"],
        "recipe.batch_size": [2, 4],
    }
    study = read_study(write(tmp_path / "study.yaml", axes=axes, seeds=[0, 1, 2]))
    runs = runs_of(study, StudyFolder(tmp_path / "out"))
    for batch in batches_of(runs, 4):
        assert len({(r.values["method"]["name"], r.values["recipe"]["batch_size"]) for r in batch}) == 1
    assert sorted(len(batch) for batch in batches_of(runs, 4)) == [2, 2, 3, 3, 4, 4]
    assert [run.id for [run] in batches_of(runs, 1)] == [run.id for run in runs]


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"protocol": {"name": "few-shot", "shots": 2}}, [2, 2]),  # a seed draws its own rows
        ({"axes": {"rows": {"some": {"data.train.limit": 8}, "all": {}}}}, [2, 2]),
        ({"axes": {"judged": {"here": {}, "there": {"data.test.limit": 3}}}}, [4]),
        ({"recipe": {"steps": 2, "trackers": ["tensorboard"]}}, [1, 1, 1, 1]),
    ],
    ids=["few-shot", "rows", "test rows", "trackers"],
)
def test_what_a_batch_must_have_in_common(tmp_path: Path, changes: Any, sizes: list[int]) -> None:
    study = read_study(write(tmp_path / "study.yaml", **changes))
    runs = runs_of(study, StudyFolder(tmp_path / "out"))
    assert sorted(map(len, batches_of(runs, 9))) == sizes


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for key, value in (("together", 0), ("together", "all"), ("cache_features", 3)):
        with pytest.raises(ValueError, match=f"{key} is {value!r}"):
            read_study(write(tmp_path / "study.yaml", **{key: value}))
