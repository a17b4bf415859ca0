"""A study's run of classes that come in tasks, killed between two of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.protocols import class_incremental
from softprompt.records import Outcome, stages
from softprompt.studies import StudyFolder, Worker, conduct, read_study
from tests.cli.runs import write_rows
from tests.studies.small import write_study
from tests.studies.test_studies_conduct import open_tiny

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
LABELS = ["good", "bad", "great", "awful"]


def made(study: Path, output: Path) -> tuple[Outcome, list[dict[str, Any]]]:
    folder = StudyFolder(output)
    [run] = conduct(read_study(study), folder, Worker(open_tiny)).runs
    outcome = folder.outcome(run.id)
    assert outcome is not None
    return outcome, folder.history(run.id)


@pytest.mark.slow
def test_it_goes_on_with_the_next_task_and_knows_the_steps_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = write_study(
        tmp_path / "study.yaml",
        task={"name": "sequence-classification", "template": "{text}", "labels": LABELS},
        axes={"method": ["linear-probe"]},
        seeds=[0],
        protocol={"name": "class-incremental", "tasks": 2},
    )
    write_rows(
        tmp_path / "rows.jsonl",
        [{"text": f"the {what} is {word}", "label": word} for what in ("film", "book") for word in LABELS],
    )
    whole, history = made(study, tmp_path / "whole")
    write = stages.write_stage

    def killed(*arguments: Any) -> None:
        write(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(class_incremental, "write_stage", killed)
        with pytest.raises(KeyboardInterrupt):
            made(study, tmp_path / "killed")
    found, resumed = made(study, tmp_path / "killed")
    assert [record["loss"] for record in resumed] == [record["loss"] for record in history]
    assert len(resumed) == 8
    assert found.facts["metrics"] == whole.facts["metrics"]
    spent = found.facts["times"]
    assert sum(spent.values()) < found.facts["wall_seconds"]  # of the process that brought the run to its end
    assert spent["steps"] < found.facts["seconds"]
