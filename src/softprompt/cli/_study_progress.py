"""The progress of a study: how many runs are done, where the current one is, how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from softprompt.training.progress_line import Standing, fitted

if TYPE_CHECKING:
    from softprompt.studies import Outcome, Plan, PlannedRun, StudyFolder
    from softprompt.training.progress import Progress, Record


class StudyProgress:
    """Two lines with bars, one for the study and one for the current run; without a terminal, a line for each finished run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._study = Standing(0, 0, unit="runs")
        self._run: Standing | None = None
        self._live = Live(get_renderable=self._lines, console=console, refresh_per_second=4, transient=True)
        self._left = ""

    def __enter__(self) -> StudyProgress:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        runs = {run.id: run for run in found.runs}
        ended = [run for run in runs.values() if folder.outcome(run.id) is not None]
        left = [run for run in runs.values() if folder.outcome(run.id) is None]
        seconds = remaining(ended, left, found.later, folder)
        at_work = 1 + folder.others_at_work(left)
        self._left = (
            "" if seconds is None or not (left or found.later) else f"{in_words(seconds / at_work)} left"
        )
        self._study = Standing(
            len(ended),
            len(runs) + found.later,
            unit="runs",
            left=None if not self._left else (seconds or 0) / at_work,
        )

    def begins(self, runs: Sequence[PlannedRun]) -> Progress:
        self._run = Standing(0, 0, name=runs[0].id + (f" and {len(runs) - 1} more" if len(runs) > 1 else ""))
        return _RunLine(self)

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        self._run = None
        self.note(f"{run.id}: {result_in_words(outcome)}{f'  ({self._left})' if self._left else ''}")

    def note(self, message: str) -> None:
        self._console.print(Text(message), soft_wrap=True)

    def stands(self, **changes: Any) -> None:
        """The current run has come so far."""
        if self._run is not None:
            self._run = replace(self._run, **changes)

    def _lines(self) -> Text:
        options = self._console.options
        return Text("\n").join(
            fitted(standing, options.max_width - 1, ascii_only=options.ascii_only)
            for standing in (self._study, self._run)
            if standing is not None
        )


class _RunLine:
    """Tells the progress of the study how far its current run is."""

    def __init__(self, study: StudyProgress) -> None:
        self._study = study
        self._began, self._start, self._steps = time.monotonic(), 0, 0

    def begin(self, steps: int, done: int) -> None:
        self._began, self._start, self._steps = time.monotonic(), done, steps
        self._study.stands(steps=steps, done=done, unit="steps")

    def update(self, record: Record) -> None:
        made = max(1, record.step - self._start)
        left = (time.monotonic() - self._began) / made * (self._steps - record.step)
        self._study.stands(done=record.step, loss=record.loss, left=left)

    def report(self, record: Record, *, is_best: bool) -> None:
        self._study.stands(metrics=dict(record.metrics))

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
