"""The studies that come with the project: each gives runs that can be made, also with --full."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softprompt import zoo
from softprompt.studies import Outcome, PlannedRun, plan, read_study

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_ready_study_comes_to_runs(path: Path, full: bool) -> None:
    if full:
        pytest.importorskip("optuna")
    study = read_study(path, full=full)
    known: dict[str, Outcome] = {}
    while todo := [run for run in plan(study, known.get).runs if run.id not in known]:
        for run in todo:
            settings = run.settings()
            data = settings.config.data
            for source in (data.train, data.validation, data.test, *settings.protocol.sources().values()):
                assert source is None or source.source in zoo.names()
            metrics = {"validation": {"accuracy": len(known) % 7}}
            known[run.id] = Outcome("finished", {"main_metric": "accuracy", "metrics": metrics})
    finals = [run for run in plan(study, known.get).runs if run.stage == "final"]
    assert all("test" in run.values["data"] for run in finals)
    for run in finals:
        assert_labels_hold(run)
    trained = [run for run in finals if run.values["method"]["name"] not in ("zero-shot", "manual-prompt")]
    assert len({run.seed for run in trained}) >= 3
    assert all(
        ("/" in run.values["backbone"]["name"]) == full for run in finals
    )  # built-in models, or models of the hub


def assert_labels_hold(run: PlannedRun) -> None:
    """What the labels of a run say in numbers is what the run does."""
    values = run.values
    known = {
        "steps": values["recipe"]["steps"],
        "rows": values["data"]["train"]["limit"],
        "a class": run.settings().protocol.draws(),
        "token": values["method"].get("length"),
        "demonstrations": values["method"].get("shots"),
    }
    for label in run.cell.values():
        for number, what in re.findall(rf"([\d,]+) ({'|'.join(known)})", label):
            assert int(number.replace(",", "")) == known[what], f"{label}: {known[what]} {what}"


def test_there_is_one_for_each_question() -> None:
    names = {path.stem for path in STUDIES}
    assert names >= {"prompt-length", "init", "steps", "dept", "peft", "domain-shift", "few-shot", "methods"}
    assert names >= {"scale", "vpt", "class-incremental", "base-to-new", "ensembles"}
