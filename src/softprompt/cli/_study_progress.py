"""The progress of a study: how many runs are done, where the current one is, how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

if TYPE_CHECKING:
    from softprompt.studies import Outcome, Plan, PlannedRun, StudyFolder
    from softprompt.training.progress import Progress, Record


class StudyProgress:
    """Two progress bars, one for the study and one for the current run; without a terminal, a line for each finished run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._study: TaskID = self._bars.add_task("", total=None, what="runs ")
        self._run: TaskID = self._bars.add_task("", total=None, what="steps", visible=False)
        self._done, self._total, self._left = 0, 0, ""
        self._started = time.monotonic()

    def __enter__(self) -> StudyProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        runs = {run.id: run for run in found.runs}
        ended = [run for run in runs.values() if folder.outcome(run.id) is not None]
        left = [run for run in runs.values() if folder.outcome(run.id) is None]
        self._done, self._total = len(ended), len(runs) + found.later
        seconds = remaining(ended, left, found.later, folder)
        at_work = 1 + folder.others_at_work(left)
        self._left = (
            "" if seconds is None or not (left or found.later) else f"{in_words(seconds / at_work)} left"
        )
        self._bars.update(self._study, total=self._total, completed=self._done, description=self._left)

    def begins(self, runs: Sequence[PlannedRun]) -> Progress:
        name = runs[0].id + (f" and {len(runs) - 1} more" if len(runs) > 1 else "")
        self._bars.update(self._run, visible=True, total=None, completed=0, description=name)
        return _RunBar(self._bars, self._run, name)

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        self._bars.update(self._run, visible=False)
        self.note(f"{run.id}: {result_in_words(outcome)}{f'  ({self._left})' if self._left else ''}")

    def note(self, message: str) -> None:
        self._bars.console.print(Text(message), soft_wrap=True)


class _RunBar:
    def __init__(self, bars: Bars, task: TaskID, name: str) -> None:
        self._bars, self._task, self._name = bars, task, name
        self._metrics = ""

    def begin(self, steps: int, done: int) -> None:
        self._bars.update(self._task, total=steps, completed=done)

    def update(self, record: Record) -> None:
        text = f"{self._name}  loss {record.loss:.4g}{self._metrics}"
        self._bars.update(self._task, completed=record.step, description=text)

    def report(self, record: Record, *, is_best: bool) -> None:
        self._metrics = "".join(f"  {name} {value:.4g}" for name, value in record.metrics.items())

    def end(self) -> None:
        pass


def result_in_words(outcome: Outcome) -> str:
    """ "accuracy 0.8125 on test, 0.8300 on validation, 12 s"."""
    facts = outcome.facts
    if outcome.status in ("failed", "diverged"):
        return f"{outcome.status}: {facts['error']['type']}: {facts['error']['message'].splitlines()[0]}"
    main = facts["main_metric"]
    found = [
        f"{metrics[main]:.4f} on {name}"
        for name, metrics in reversed(facts["metrics"].items())
        if metrics.get(main) is not None
    ]
    given_up = "given up, " if outcome.status == "pruned" else ""
    return f"{given_up}{main} {', '.join(found)}, {in_words(facts['wall_seconds'])}"


def remaining(
    ended: list[PlannedRun], left: list[PlannedRun], later: int, folder: StudyFolder
) -> float | None:
    """Seconds that one process needs for the remaining runs, estimated from the finished ones; None if none has finished."""
    rates = defaultdict(list)  # method -> seconds per row and step; None: of whatever method
    whole = []
    for run in ended:
        outcome = folder.outcome(run.id)
        if outcome is None or outcome.status != "finished":
            continue
        seconds = outcome.facts["wall_seconds"]
        whole.append(seconds)
        for key in (run.values["method"]["name"], None):
            rates[key].append(seconds / _work(run))
    if not whole:
        return None
    usual = {key: statistics.mean(found) for key, found in rates.items()}
    known = sum(usual.get(run.values["method"]["name"], usual[None]) * _work(run) for run in left)
    return known + later * statistics.mean(whole)


def _work(run: PlannedRun) -> int:
    return int(run.values["recipe"]["steps"] * run.values["recipe"]["batch_size"])


def in_words(seconds: float) -> str:
    """ "42 s", "3 min", "2 h 5 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
