"""Settings drawn by Optuna: the same ones however often the study is killed, and never chosen by test data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.backbones.loading import load_backbone
from softprompt.fitting.run_config import BackboneConfig
from softprompt.studies import (
    Outcome,
    PlannedRun,
    StudyFolder,
    Worker,
    conduct,
    parse_study,
    plan,
    read_study,
    search,
)
from softprompt.studies.engine import Quiet
from softprompt.studies.pruning import pruner
from tests.studies.small import results, write_study
from tests.studies.test_plan import SHARED, nothing

pytest.importorskip("optuna")

SEARCH = {"by": "optuna", "trials": 8}
SPACE = {
    "recipe.learning_rate": {"low": 0.001, "high": 1.0, "log": True},
    "method.length": {"low": 1, "high": 30},
}


def walked(study: Any, score: Any) -> list[PlannedRun]:
    """All trials, where a run's validation metric is a function of its settings."""
    known: dict[str, Outcome] = {}
    while True:
        found = plan(study, known.get)
        todo = [run for run in found.runs if run.id not in known]
        if not todo:
            return [run for run in found.runs if run.stage == "search"]
        for run in todo:
            metrics = {"validation": {"accuracy": score(run.chosen)}}
            known[run.id] = Outcome("finished", {"main_metric": "accuracy", "metrics": metrics})


class Forgetful(dict[str, Any]):
    """Keeps nothing from one question to the next: each draw is made anew, as by a process that has just begun."""

    def __contains__(self, key: object) -> bool:
        return False


def near(chosen: Any) -> float:
    return -abs(chosen["method.length"] - 12) - abs(chosen["recipe.learning_rate"] - 0.1)


def test_trials_are_the_same_each_time_and_other_ones_for_another_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {**SHARED, "method": "prompt-tuning", "select": SPACE}
    first = walked(parse_study({**values, "search": SEARCH}), near)
    monkeypatch.setattr(search, "_DRAWN", Forgetful())  # a new process for each plan
    again = walked(parse_study({**values, "search": SEARCH}), near)
    other = walked(parse_study({**values, "search": {**SEARCH, "seed": 1}}), near)
    assert [run.id for run in first] == [run.id for run in again]
    assert [run.trial for run in first] == list(range(8))
    assert not {run.id for run in first} & {run.id for run in other}
    assert all(1 <= run.values["method"]["length"] <= 30 for run in first)


def test_trials_at_once_do_not_wait_for_each_other() -> None:
    at_once = {**SEARCH, "at_once": 3}
    study = parse_study(
        {**SHARED, "method": "prompt-tuning", "select": SPACE, "search": at_once, "seeds": [0, 1]}
    )
    found = plan(study, nothing)
    assert len(found.runs) == 3
    assert found.later == 5 + 2
    assert len(walked(study, near)) == 8


def test_a_trial_below_the_median_of_the_earlier_ones_is_given_up_at_that_step(tmp_path: Path) -> None:
    values = {**SHARED, "method": "prompt-tuning", "select": SPACE, "search": SEARCH}
    study, folder = parse_study(values), StudyFolder(tmp_path)
    folder.begin(study)
    for number in range(5):
        run = plan(study, folder.outcome).runs[number]
        told = [{"step": step, "value": 0.1 * number + 0.01 * step} for step in (10, 20)]
        prune = pruner(study, run, folder)
        assert not prune(told), "four trials are let through, and what is no worse than their median"
        folder.begin_run(run)
        facts = {
            "status": "finished",
            "main_metric": "accuracy",
            "metrics": {"validation": {"accuracy": told[-1]["value"]}},
        }
        folder.end(run.id, facts | {"evaluations": told})
    prune = pruner(study, plan(study, folder.outcome).runs[5], folder)
    median = 0.2 + 0.01 * 10
    assert not prune([{"step": 10, "value": median + 0.01}])
    assert prune([{"step": 10, "value": median - 0.01}])
    assert prune([{"step": 10, "value": median + 0.01}, {"step": 20, "value": 0.0}])


def test_a_trial_of_optuna_has_one_seed() -> None:
    with pytest.raises(ValueError, match="a trial of Optuna is one run"):
        parse_study(
            {**SHARED, "method": "prompt-tuning", "select": SPACE, "search": {**SEARCH, "seeds": [1, 2]}}
        )


@pytest.mark.slow
def test_a_search_finds_what_is_better_and_a_hopeless_trial_is_given_up(tmp_path: Path) -> None:
    study = write_study(
        tmp_path / "study.yaml",
        axes={"method": [{"name": "prompt-tuning", "length": 2}]},
        recipe={"steps": 4, "batch_size": 8, "evaluate_every": 2},
        seeds=[0],
        select={"recipe.learning_rate": {"low": 1e-6, "high": 0.3, "log": True}},
        search={"by": "optuna", "trials": 8},
    )
    folder = StudyFolder(tmp_path / "out")

    def opening(config: BackboneConfig) -> Any:
        return load_backbone(config.name, dtype="float32", device="cpu")

    found = conduct(read_study(study), folder, Worker(opening), show=Quiet())
    outcomes = {run.id: folder.outcome(run.id) for run in found.runs}
    statuses = [outcome.status for outcome in outcomes.values() if outcome is not None]
    assert set(statuses) <= {"finished", "pruned"}
    *trials, final = found.runs
    best = max(
        (run for run in trials if outcomes[run.id].status == "finished"),  # type: ignore[union-attr]
        key=lambda run: outcomes[run.id].validation,  # type: ignore[union-attr]
    )
    assert final.chosen == best.chosen
    assert "test" in outcomes[final.id].facts["metrics"]  # type: ignore[union-attr]
    assert all("test" not in outcomes[run.id].facts["metrics"] for run in trials)  # type: ignore[union-attr]
    assert results(study, tmp_path / "out")
