"""Ctrl-C at the worst moment of an evaluation: after the resume, result and pruner know what they would have known."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from softprompt.backbones.loading import load_backbone
from softprompt.fitting.run_config import BackboneConfig
from softprompt.studies import StudyFolder, Worker, conduct, plan, read_study
from softprompt.studies.config import Study
from softprompt.studies.watching import Watcher
from softprompt.training import ongoing
from softprompt.training.progress import Record
from tests.studies.small import write_study


def open_tiny(config: BackboneConfig) -> Any:
    return load_backbone(config.name, dtype="float32", device="cpu")


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    axes = {"method": [{"name": "prompt-tuning", "length": 2}]}
    recipe = {"steps": 12, "batch_size": 4, "evaluate_every": 3}
    yield read_study(write_study(tmp_path / "study.yaml", recipe=recipe, axes=axes, seeds=[0]))
    signal.signal(signal.SIGINT, before)


def interrupt_once(monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """A real SIGINT at the evaluation after step 6, before or after it is reported."""
    left = [True]
    noted, reported = replace, Watcher.report

    def signalled(step: int) -> None:
        if left and step == 6:
            left.clear()
            signal.raise_signal(signal.SIGINT)

    def note(record: Record, **changes: Any) -> Record:
        if "metrics" in changes and moment == "noted":
            signalled(record.step)
        return noted(record, **changes)

    def report(self: Watcher, record: Record, *, is_best: bool) -> None:
        if moment == "report":
            signalled(record.step)
        reported(self, record, is_best=is_best)

    monkeypatch.setattr(ongoing, "replace", note)
    monkeypatch.setattr(Watcher, "report", report)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["noted", "report"])
def test_no_evaluation_is_lost(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder = StudyFolder(tmp_path / "out")
    with monkeypatch.context() as patch:
        interrupt_once(patch, moment)
        with pytest.raises(KeyboardInterrupt):
            conduct(study, folder, Worker(open_tiny))
    conduct(study, folder, Worker(open_tiny))
    [run] = plan(study, folder.outcome).runs
    outcome = folder.outcome(run.id)
    assert outcome is not None
    assert [entry["step"] for entry in outcome.facts["evaluations"]] == [3, 6, 9, 12]


@pytest.mark.parametrize("moment", ["noted", "report"])
def test_a_trial_that_would_be_given_up_is_given_up_after_the_resume(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    folder, worker = StudyFolder(tmp_path / "out"), Worker(open_tiny)
    folder.begin(study)
    [run] = plan(study, folder.outcome).runs
    folder.begin_run(run)

    def measured() -> Any:
        [outcome] = worker.do([run], folder, keep_prompt=False, prune=lambda found: found[-1]["step"] == 6)
        return outcome

    with monkeypatch.context() as patch:
        interrupt_once(patch, moment)
        with pytest.raises(KeyboardInterrupt):
            measured()
    outcome = measured()
    assert outcome.status == "pruned"
    assert [entry["step"] for entry in outcome.facts["evaluations"]] == [3, 6]
