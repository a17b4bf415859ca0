"""Progress of a run: one record per step, and classes that show it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBar


@dataclass(frozen=True)
class Record:
    """One optimizer step.

    step           steps done with this one, from 1
    loss           mean over the rows of the batch, before the step
    lr             learning rate of the first parameter group
    gradient_norm  over all trained tensors, before clipping
    tokens         context and target tokens of the batch; a virtual token of the template counts as one
    seconds        time the step took, without evaluations and checkpoints
    metrics        of the evaluation after this step, where there was one
    penalty        the part of the loss that the method itself adds
    """

    step: int
    loss: float
    lr: float
    gradient_norm: float
    tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    penalty: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """One flat dictionary, for a line of JSON or a tracker; a metric has `eval/` before its name.

        Without a penalty where the method adds none."""
        values = asdict(self)
        metrics = values.pop("metrics")
        if not self.penalty:
            del values["penalty"]
        return values | {f"eval/{name}": value for name, value in metrics.items()}


class Progress(Protocol):
    """Receives what happens in a run, on the main process only."""

    def begin(self, steps: int, done: int) -> None:
        """The run has `steps` optimizer steps, of which `done` were made before it was resumed."""
        ...

    def update(self, record: Record) -> None:
        """A step was made."""
        ...

    def report(self, record: Record, *, is_best: bool) -> None:
        """An evaluation is due: `record.metrics` has its result, empty where nothing is evaluated."""
        ...

    def end(self) -> None:
        """The run is over, or was interrupted."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, steps: int, done: int) -> None:
        pass

    def update(self, record: Record) -> None:
        pass

    def report(self, record: Record, *, is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass


class ConsoleProgress:
    """Shows loss, metrics, tokens per second and remaining time in a bar; without a terminal, a line per evaluation."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: RichBar | None = None
        self._steps = 0
        self._metrics = ""
        self._loss: float | None = None
        self._rate: float | None = None

    def begin(self, steps: int, done: int) -> None:
        self._steps, self._metrics, self._loss, self._rate = steps, "", None, None
        if done:
            self._console.print(f"resumed after step {done} of {steps}", highlight=False)
        if self._console.is_terminal:
            self._bar = RichBar(
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.add_task("", total=steps, completed=done)
            self._bar.start()

    def update(self, record: Record) -> None:
        # Running means over about ten steps: a single batch says little.
        rate = record.tokens / max(record.seconds, 1e-9)
        self._loss = record.loss if self._loss is None else 0.9 * self._loss + 0.1 * record.loss
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=record.step, description=self._status())

    def report(self, record: Record, *, is_best: bool) -> None:
        self._metrics = "".join(f"  {name} {value:.4g}" for name, value in record.metrics.items())
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=self._status())
        else:
            best = "  best" if is_best else ""
            self._console.print(
                f"step {record.step}/{self._steps}  {self._status()}{best}", highlight=False, soft_wrap=True
            )

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _status(self) -> str:
        loss = "" if self._loss is None else f"loss {self._loss:.4g}"
        rate = "" if self._rate is None else f"  {self._rate:,.0f} tokens/s"
        return f"{loss}{self._metrics}{rate}"


class Shared:
    """Shows several runs as one, with their steps added up. All runs are given the same object."""

    def __init__(self, shown: Progress, runs: int) -> None:
        self._shown = shown
        self._runs = runs
        self._begun = self._ended = self._steps = self._done = 0

    def begin(self, steps: int, done: int) -> None:
        self._begun += 1
        self._steps += steps
        self._done += done
        if self._begun == self._runs:
            self._shown.begin(self._steps, self._done)

    def update(self, record: Record) -> None:
        self._done += 1
        self._shown.update(replace(record, step=self._done))

    def report(self, record: Record, *, is_best: bool) -> None:
        self._shown.report(replace(record, step=self._done), is_best=is_best)

    def end(self) -> None:
        self._ended += 1
        if self._ended == self._runs == self._begun:
            self._shown.end()
