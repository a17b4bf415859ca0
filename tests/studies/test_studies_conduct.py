"""conduct: each run is made once, whatever interrupts the study."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from softprompt.backbones.loading import load_backbone
from softprompt.features import encoded
from softprompt.fitting.run_config import BackboneConfig
from softprompt.protocols import fit_and_test
from softprompt.studies import StudyFolder, Worker, conduct, engine, plan, read_study, supplies
from softprompt.studies.engine import Quiet
from softprompt.tasks.classification import TextClassificationEncoder
from softprompt.training.progress import Record, Silent
from tests.cli.runs import as_json, softprompt, write_rows
from tests.kills import NEVER, killed, round_of_kills
from tests.studies.small import results, write_study


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study and, in `out` beside it, its finished folder; tests leave both as they are."""
    study = write_study(tmp_path_factory.mktemp("undisturbed") / "study.yaml")
    assert as_json("compare", study, "-o", study.parent / "out", "--quiet")["runs"] == 4
    return study


def open_tiny(config: BackboneConfig) -> Any:
    return load_backbone(config.name, dtype="float32", device="cpu")


def test_a_run_leaves_all_that_is_known_of_it(undisturbed: Path) -> None:
    folder = StudyFolder(undisturbed.parent / "out")
    run = next(
        r for r in plan(folder.study(), folder.outcome).runs if r.cell["method"].startswith("prompt-tuning")
    )
    assert {path.name for path in folder.run(run.id).iterdir()} == {
        "config.yaml",
        "evaluations.json",
        "history.jsonl",
        "prompt",
        "result.json",
    }
    config = yaml.safe_load((folder.run(run.id) / "config.yaml").read_text())
    assert config["recipe"]["optimizer"] == "adamw"  # every default is written out
    outcome = folder.outcome(run.id)
    assert outcome is not None
    facts = outcome.facts
    assert facts["status"] == "finished"
    assert facts["trained_parameters"] == 2 * 48
    assert {"validation", "test"} == set(facts["metrics"])
    assert sum(sum(row.values()) for row in facts["metrics"]["test"]["confusion"].values()) == 16
    assert facts["rows"]["train"]["count"] == 16
    assert facts["peak_memory"]["host"] > 2**20
    assert facts["wall_seconds"] >= facts["seconds"] > 0
    assert facts["cpu_seconds"] > 0
    assert facts["times"]["steps"] == pytest.approx(facts["seconds"])
    assert facts["times"]["evaluation"] > 0
    assert sum(facts["times"].values()) <= facts["wall_seconds"]
    assert facts["environment"]["versions"]["torch"] == torch.__version__
    assert [record["step"] for record in folder.history(run.id)] == [1, 2, 3, 4]
    assert [entry["step"] for entry in facts["evaluations"]] == [2, 4]


def test_a_finished_study_is_left_as_it_is(undisturbed: Path) -> None:
    out = undisturbed.parent / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert as_json("compare", undisturbed, "-o", out)["runs"] == 4
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_more_seeds_run_only_what_is_new(undisturbed: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(undisturbed.read_text())
    study = tmp_path / "study.yaml"
    done: list[str] = []

    class Noted(Quiet):
        def ended(self, run: Any, outcome: Any) -> None:
            done.append(run.id)

    for seeds in ([0], [0, 1]):
        study.write_text(yaml.safe_dump({**values, "seeds": seeds}))
        conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny), show=Noted())
    assert len(done) == len(set(done)) == 4
    assert results(study, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")


def test_backbone_and_data_are_read_once(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load = supplies.source_rows
    monkeypatch.setattr(
        supplies, "source_rows", lambda source, usual: (read.append(usual), load(source, usual))[1]
    )
    opened: list[str] = []

    def opening(config: BackboneConfig) -> Any:
        opened.append(config.name)
        return open_tiny(config)

    conduct(read_study(undisturbed), StudyFolder(tmp_path), Worker(opening))
    assert len(opened) == 1
    assert len(read) == 3  # train, validation, test, for four runs


@pytest.mark.slow
def test_rows_are_encoded_once_for_runs_that_read_them_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["zero-shot", *({"name": name, "length": 2} for name in ("prompt-tuning", "p-tuning"))]
    study = write_study(tmp_path / "study.yaml", axes={"method": methods})
    encoded: list[str] = []
    encode = TextClassificationEncoder.encode

    def counted(self: TextClassificationEncoder, row: Any, *, answer: bool = True) -> Any:
        encoded.append(f"{self.setting.virtual_tokens} {answer}")
        return encode(self, row, answer=answer)

    monkeypatch.setattr(TextClassificationEncoder, "encode", counted)
    conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny))
    # Training, validation and test rows; what is not trained reads no training rows.
    assert Counter(encoded) == {"0 True": 2 * 16, "2 True": 3 * 16}


@pytest.mark.slow
def test_what_a_frozen_backbone_says_of_rows_is_computed_once_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {
        "task": {"name": "sequence-classification", "template": "{text}", "labels": ["neg", "pos"]},
        "axes": {"method": ["linear-probe"]},
    }
    study = write_study(tmp_path / "study.yaml", **changes)
    conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny))
    computed: list[int] = []
    compute = encoded.with_features

    def counted(backbone: Any, rows: Any, *rest: Any, **options: Any) -> Any:
        computed.append(len(rows))
        return compute(backbone, rows, *rest, **options)

    monkeypatch.setattr(encoded, "with_features", counted)
    write_study(study, **changes, cache_features=True)
    conduct(read_study(study), StudyFolder(tmp_path / "cached"), Worker(open_tiny))
    assert computed == [16, 16, 16]  # training, validation and test rows, for two runs
    for run in plan(read_study(study), StudyFolder(tmp_path / "out").outcome).runs:
        with_cache, without = (
            StudyFolder(tmp_path / name).history(run.id)[-1]["loss"] for name in ("cached", "out")
        )
        assert with_cache == pytest.approx(without, rel=1e-4)


def test_a_failed_run_keeps_its_traceback_and_stops_nothing(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "study.yaml",
        axes={"method": ["linear-probe", {"name": "prompt-tuning", "length": 2}]},
        seeds=[0],
    )
    result = softprompt("compare", study, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 1
    values = json.loads(result.stdout)
    assert [name.startswith("linear-probe") for name in values["failed"]] == [True]
    assert "linear-probe trains a head" in values["warnings"][0]
    assert "--retry-failed" in result.stderr
    folder = StudyFolder(tmp_path / "out")
    failed, finished = (folder.outcome(run.id) for run in plan(folder.study(), folder.outcome).runs)
    assert failed is not None
    assert finished is not None
    assert (failed.status, finished.status) == ("failed", "finished")
    assert "Traceback" in failed.facts["traceback"]
    assert "binding.py" in failed.facts["traceback"]


def test_a_failed_run_is_made_again_only_when_asked(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml", axes={"method": ["prompt-tuning"]}, seeds=[0])
    rows = tmp_path / "rows.jsonl"
    rows.unlink()
    assert softprompt("compare", study, "-o", tmp_path / "out", "--quiet").exit_code == 1
    write_rows(rows)
    assert softprompt("compare", study, "-o", tmp_path / "out", "--quiet").exit_code == 1
    again = softprompt("compare", study, "-o", tmp_path / "out", "--quiet", "--retry-failed")
    assert again.exit_code == 0
    said = " ".join(again.stdout.split())
    assert "prompt-tuning" in said
    assert "1 seed, 16 test rows." in said  # the finding
    assert said.endswith(f"next: softprompt report {tmp_path / 'out'}")
    assert "16 test rows are few" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["cut", "altered", "other", "list", "history", "prompt", "half a prompt", "config", "date"]
)
def test_a_damaged_run_is_set_aside_and_made_anew(undisturbed: Path, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    values = yaml.safe_load(undisturbed.read_text()) | {"seeds": [0]}
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(values))
    as_json("compare", study, "-o", out, "--quiet")
    whole = results(study, out)
    zero, tuned = sorted((out / "runs").iterdir(), reverse=True)
    target = tuned / "result.json"
    text = target.read_text()
    if damage == "cut":
        target.write_text(text[: len(text) // 2])
    elif damage == "altered":
        target.write_text(text.replace('"best_step": ', '"best_step": 1'))
    elif damage == "other":
        target.write_text((zero / "result.json").read_text())
    elif damage == "list":
        target.write_text("[]")
    elif damage == "history":
        (tuned / "history.jsonl").write_text("{}\n")
    elif damage == "prompt":
        prompt = tuned / "prompt" / "prompt.safetensors"
        content = prompt.read_bytes()
        prompt.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "half a prompt":
        (tuned / "prompt" / "prompt.safetensors").unlink()
    elif damage == "date":
        (tuned / "config.yaml").write_text("a: 2020-01-01")  # which JSON does not have
    else:
        (tuned / "config.yaml").write_text("backbone: {}")
    result = softprompt("compare", study, "-o", out)
    assert result.exit_code == 0
    assert "damaged:" in result.stderr
    assert [path.name for path in (out / "set-aside").iterdir()] == [f"{tuned.name}.0"]
    assert results(study, out) == whole


def test_a_model_card_is_for_people_and_older_results_say_nothing_of_the_prompt(
    undisturbed: Path, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed.parent / "out", tmp_path / "out")
    folder = StudyFolder(tmp_path / "out")
    tuned = min((folder.path / "runs").iterdir())
    (tuned / "prompt" / "README.md").write_text("The one that we use.")
    whole = folder.check(tuned.name)
    assert whole is not None
    assert set(whole.facts["prompt_sha256"]) == {"prompt.json", "prompt.safetensors"}
    older = {name: value for name, value in whole.facts.items() if name not in ("run", "prompt_sha256")}
    shutil.move(tuned / "prompt", tmp_path / "prompt")
    folder.end(tuned.name, older, folder.history(tuned.name))
    shutil.move(tmp_path / "prompt", tuned / "prompt")
    (tuned / "prompt" / "prompt.json").write_text("{}")
    assert folder.check(tuned.name) is not None


def test_a_prompt_that_was_taken_away_to_make_room_is_no_damage(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.parent / "out", tmp_path / "out")
    folder = StudyFolder(tmp_path / "out")
    tuned = min((folder.path / "runs").iterdir())
    shutil.rmtree(tuned / "prompt")
    assert folder.check(tuned.name) is not None


def test_changed_data_are_no_ground_to_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.yaml", axes={"method": ["prompt-tuning"]}, seeds=[0])

    class Stop(Silent):
        def update(self, record: Record) -> None:
            if record.step == 3:
                raise KeyboardInterrupt

    class Stopping(Quiet):
        def begins(self, runs: Any) -> Any:
            return Stop()

    with pytest.raises(KeyboardInterrupt):
        conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny), show=Stopping())
    write_rows(
        tmp_path / "rows.jsonl",
        [{"text": "a new film", "label": "pos"}, {"text": "an old one", "label": "neg"}],
    )
    result = softprompt("compare", study, "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert "the run is made anew" in result.stderr


@pytest.mark.slow
def test_a_full_disk_stops_the_study_with_a_clear_error_and_loses_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = engine.StudyFolder.end, [2]

    def end(self: StudyFolder, run_id: str, facts: Mapping[str, Any], history: Any = ()) -> Any:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        return write(self, run_id, facts, history)

    with monkeypatch.context() as patch:
        patch.setattr(StudyFolder, "end", end)
        result = softprompt("compare", undisturbed, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "is full" in result.stderr
    assert "Traceback" not in result.output
    folder = StudyFolder(tmp_path / "out")
    assert sum(folder.outcome(run.id) is not None for run in plan(folder.study(), folder.outcome).runs) == 2
    as_json("compare", undisturbed, "-o", tmp_path / "out", "--quiet")
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")


@pytest.mark.slow
@pytest.mark.parametrize("writes", [0, 1, 2, 3, 5, 8, 13, 21])
def test_a_disk_may_be_full_at_any_write(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    sync, room = os.fsync, [writes]

    def full(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        result = softprompt("compare", undisturbed, "-o", tmp_path / "out", "--quiet")
    assert result.exit_code == 1
    assert "the disk is full" in result.stderr
    assert "make room and give the same command again" in result.stderr.replace("\n", " ")
    as_json("compare", undisturbed, "-o", tmp_path / "out", "--quiet")
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")


def test_damaged_evaluations_of_an_unfinished_run_are_set_aside_with_it(
    undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed.parent / "out", out)
    for run in (out / "runs").iterdir():
        (run / "result.json").unlink()
        (run / "evaluations.json").write_text("[{")
    result = softprompt("compare", undisturbed, "-o", out)
    assert result.exit_code == 0
    assert "evaluations.json cannot be read" in result.stderr.replace("\n", "")
    assert results(undisturbed, out) == results(undisturbed, undisturbed.parent / "out")


@pytest.mark.parametrize("text", ["", "axes: [", "- a list"])
def test_a_damaged_study_file_is_one_message(undisturbed: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(undisturbed.parent / "out", out)
    (out / "study.yaml").write_text(text)
    result = softprompt("report", out)
    assert result.exit_code == 1
    assert "study.yaml" in result.stderr
    assert "Traceback" not in result.output


def test_a_clock_that_jumps_changes_nothing(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = itertools.count(2 * 10**9, -(10**6))  # back by days with each look at it
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: float(next(jumps)))
        conduct(read_study(undisturbed), StudyFolder(tmp_path / "out"), Worker(open_tiny))
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (10**9 * 5, 10**9 * 5))  # files of the year 2128
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr(fit_and_test, "fit_data", None)  # nothing is made again
    conduct(read_study(undisturbed), StudyFolder(tmp_path / "out"), Worker(open_tiny))
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")


@pytest.mark.slow
def test_two_processes_do_each_run_once(undisturbed: Path, tmp_path: Path) -> None:
    assert killed(undisturbed, tmp_path / "out", "at once", [NEVER, NEVER]) == 0
    assert not (tmp_path / "out" / "set-aside").exists()
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")


def test_a_run_of_a_living_process_is_left_to_it(undisturbed: Path, tmp_path: Path) -> None:
    study, folder = read_study(undisturbed), StudyFolder(tmp_path / "out")
    folder.begin(study)
    run, *others = plan(study, folder.outcome).runs
    with StudyFolder(folder.path).claim(run.id) as mine:
        assert mine
        assert not engine.make(study, [run], folder, Worker(open_tiny), Quiet())
        assert folder.others_at_work([run, *others]) == 1
    assert engine.make(study, [run], folder, Worker(open_tiny), Quiet())


@pytest.mark.slow
def test_a_study_that_is_killed_again_and_again_ends_bit_identical(undisturbed: Path, tmp_path: Path) -> None:
    dice = random.Random(0)
    moments = [dice.randrange(1, 40) for _ in range(6)]
    assert killed(undisturbed, tmp_path / "out", "in turn", [*moments, NEVER]) >= 3
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")
    assert not (tmp_path / "out" / "set-aside").exists()


@pytest.mark.slow
def test_kills_of_two_processes_at_once_lose_nothing(undisturbed: Path, tmp_path: Path) -> None:
    """One round of what tests/jobs/kills.py repeats for as long as is asked."""
    assert round_of_kills(undisturbed, tmp_path / "out", random.Random(1)) >= 3
    assert results(undisturbed, tmp_path / "out") == results(undisturbed, undisturbed.parent / "out")
