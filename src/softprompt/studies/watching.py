"""Notes about a run while it is made: evaluations, times, warnings."""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softprompt.errors import SoftpromptWarning
from softprompt.files import read_text, write_text
from softprompt.training.progress import Progress, Record

Prune = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Called with a trial's evaluations so far, each with "step" and "value"; returns whether to give it up."""


class Pruned(Exception):  # noqa: N818 - no error
    """A trial was given up."""


@dataclass
class Watcher:
    """Passes a run's progress on, keeps its evaluations in a file, and gives a trial up.

    times: seconds of this process in steps and in evaluations
    began: how often training began; 0: there was nothing to train
    """

    folder: Path
    metric: str
    shown: Progress
    prune: Prune | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=lambda: {"steps": 0.0, "evaluation": 0.0})
    began: int = 0
    _since: float = 0.0

    @property
    def _file(self) -> Path:
        return self.folder / "evaluations.json"

    def begin(self, steps: int, done: int) -> None:
        # An evaluation is written before the checkpoint of its step: what a resumed run makes again is dropped here.
        known = json.loads(read_text(self._file)) if done and self._file.exists() else []
        self.evaluations = [entry for entry in known if entry["step"] <= done]
        # A Ctrl-C may have come before the trial could be given up; what was found so far is judged as it was then.
        if self.prune is not None and self.evaluations and self.prune(self.evaluations):
            raise Pruned
        self.shown.begin(steps, done)
        self.began, self._since = self.began + 1, time.perf_counter()

    def update(self, record: Record) -> None:
        self.times["steps"] += record.seconds
        self.shown.update(record)
        self._since = time.perf_counter()

    def report(self, record: Record, *, is_best: bool) -> None:
        self.times["evaluation"] += time.perf_counter() - self._since  # it follows the step that it judges
        self.shown.report(record, is_best=is_best)
        if self.metric not in record.metrics:
            return
        self.evaluations = [entry for entry in self.evaluations if entry["step"] < record.step]
        self.evaluations.append({"step": record.step, "value": record.metrics[self.metric]})
        write_text(self._file, json.dumps(self.evaluations))
        if self.prune is not None and self.prune(self.evaluations):
            raise Pruned

    def end(self) -> None:
        self.shown.end()


@contextlib.contextmanager
def concerns_in(concerns: list[str]) -> Iterator[None]:
    """Collect the library's warnings in the list, each once; show other warnings as usual."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SoftpromptWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, SoftpromptWarning):
            if (sentence := str(warning.message)) not in concerns:  # some are warned of at every batch
                concerns.append(sentence)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
