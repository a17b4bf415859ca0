"""The progress that `softprompt compare` shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from softprompt.cli._study_progress import StudyProgress, in_words, remaining, result_in_words
from softprompt.studies import Outcome, Plan, StudyFolder, plan
from softprompt.training.progress import Record
from tests.studies.made_up import ended, made_up

METHODS = {"method": [{"name": "prompt-tuning", "length": 2}, {"name": "p-tuning", "length": 2}]}
SECONDS = {"prompt-tuning": 40.0, "p-tuning": 100.0}
LOST = {
    "status": "failed",
    "stage": "final",
    "error": {"type": "RuntimeError", "message": "no memory\nat all"},
    "traceback": "",
    "wall_seconds": 10_000.0,
}


def begun(path: Path, seeds: set[int]) -> tuple[Plan, StudyFolder]:
    """A study of two methods and three seeds, of which these seeds have ended."""

    def facts(run: Any) -> dict[str, Any] | None:
        seconds = SECONDS[run.values["method"]["name"]]
        return ended(run, 0.5, wall_seconds=seconds) if run.seed in seeds else None

    folder = made_up(path, facts, axes=METHODS, seeds=[0, 1, 2])
    return plan(folder.study(), folder.outcome), folder


def parts(found: Plan, folder: StudyFolder) -> tuple[list[Any], list[Any]]:
    known = [run for run in found.runs if folder.outcome(run.id) is not None]
    return known, [run for run in found.runs if run not in known]


def test_what_remains_is_judged_by_the_runs_of_the_same_method(tmp_path: Path) -> None:
    found, folder = begun(tmp_path, {0})
    known, left = parts(found, folder)
    assert remaining(known, left, 0, folder) == pytest.approx(2 * 40 + 2 * 100)
    slow = [run for run in left if run.values["method"]["name"] == "p-tuning"]
    assert remaining(known, slow, 0, folder) == pytest.approx(2 * 100)
    fast = [run for run in known if run.values["method"]["name"] == "prompt-tuning"]
    assert remaining(fast, slow, 0, folder) == pytest.approx(2 * 40)  # of a method that is not known yet
    assert remaining(known, left, 3, folder) == pytest.approx(280 + 3 * 70)


def test_what_remains_is_not_guessed_before_a_run_has_finished(tmp_path: Path) -> None:
    found, folder = begun(tmp_path, set())
    assert remaining([], list(found.runs), 0, folder) is None
    folder.begin_run(found.runs[0])
    folder.end(found.runs[0].id, LOST)
    known, left = parts(found, folder)
    assert len(known) == 1
    assert remaining(known, left, 0, folder) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_how_a_run_ended_in_words(tmp_path: Path) -> None:
    facts = {
        "main_metric": "accuracy",
        "metrics": {"validation": {"accuracy": 0.83}, "test": {"accuracy": 0.8125}},
        "wall_seconds": 12.0,
    }
    said = "accuracy 0.8125 on test, 0.8300 on validation, 12 s"
    assert result_in_words(Outcome("finished", facts)) == said
    assert result_in_words(Outcome("pruned", facts)) == f"given up, {said}"
    assert result_in_words(Outcome("failed", LOST)) == "failed: RuntimeError: no memory"


def shown(found: Plan, folder: StudyFolder, *, terminal: bool) -> str:
    file = io.StringIO()
    with StudyProgress(Console(file=file, force_terminal=terminal, width=160, color_system=None)) as progress:
        progress.planned(found, folder)
        run, outcome = found.runs[0], folder.outcome(found.runs[0].id)
        assert outcome is not None
        steps = progress.begins([run])
        steps.begin(4, 1)
        steps.update(Record(2, 0.5, 0.1, 1.0, 200, 0.1))
        steps.report(Record(2, 0.5, 0.1, 1.0, 200, 0.1, {"accuracy": 0.75}), is_best=True)
        steps.update(Record(3, 0.25, 0.1, 1.0, 200, 0.1))
        steps.end()
        progress._live.refresh()
        progress.ended(run, outcome)
    return file.getvalue()


def test_without_a_terminal_each_run_that_ends_is_a_line(tmp_path: Path) -> None:
    found, folder = begun(tmp_path, {0})
    [line] = shown(found, folder, terminal=False).splitlines()
    assert line == f"{found.runs[0].id}: accuracy 0.5000 on test, 40 s  (5 min left)"


def test_processes_at_work_share_what_remains(tmp_path: Path) -> None:
    found, folder = begun(tmp_path, {0})
    _, left = parts(found, folder)
    with StudyFolder(folder.path).claim(left[0].id):
        assert "(2 min left)" in shown(found, folder, terminal=False)


def test_nothing_is_left_of_a_study_that_has_ended(tmp_path: Path) -> None:
    assert "left" not in shown(*begun(tmp_path, {0, 1, 2}), terminal=False)


def test_in_a_terminal_bars_show_the_study_and_the_run(tmp_path: Path) -> None:
    found, folder = begun(tmp_path, {0})
    bars = shown(found, folder, terminal=True)
    assert "runs 2/6  4:40 left" in bars
    assert "steps 3/4  0:00 left  accuracy 0.75  loss 0.25" in bars
    assert found.runs[0].id in bars
