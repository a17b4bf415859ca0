"""Progress of a run: one record per step, and classes that show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from softprompt.training.notebook_bar import Display, notebook_bar, notebook_display
from softprompt.training.progress_line import Standing, fitted, line

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_BARS = 0.25


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
    rows, images   of the batch; 0: not counted. They are shown, and in no history
    """

    step: int
    loss: float
    lr: float
    gradient_norm: float
    tokens: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    penalty: float = 0.0
    rows: int = field(default=0, compare=False)
    images: int = field(default=0, compare=False)

    def pace(self) -> tuple[int, str]:
        """What the speed of the run is counted in, and how much of it the batch had."""
        if self.images:
            return self.images, "images"
        return (self.tokens, "tokens") if self.tokens or not self.rows else (self.rows, "rows")

    def as_dict(self) -> dict[str, Any]:
        """One flat dictionary, for a line of JSON or a tracker; a metric has `eval/` before its name.

        Without a penalty where the method adds none."""
        values = asdict(self)
        metrics = values.pop("metrics")
        del values["rows"], values["images"]
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
    """Shows how far a run is, the remaining time, the main metric, loss and speed.

    In a terminal that is one line, which fits however narrow the terminal is; in a notebook a bar; elsewhere a line for each
    evaluation, and one every half minute between them.
    """

    def __init__(self, console: Console | None = None, display: Display | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._display = display or (notebook_display if self._console.is_jupyter else None)
        self._shown: Live | None = None
        self._update: Callable[[str], None] | None = None
        self._standing = Standing(0, 0)
        self._began = self._told = 0.0
        self._start = 0
        self._rate: float | None = None

    def begin(self, steps: int, done: int) -> None:
        self._standing, self._rate, self._start = Standing(done, steps), None, done
        self._began = self._told = time.monotonic()
        if done:
            self._console.print(f"resumed after step {done} of {steps}", highlight=False)
        if self._display is not None:
            self._update = self._display(notebook_bar(self._standing))
        elif self._console.is_terminal and not self._console.is_dumb_terminal:
            self._shown = Live(
                get_renderable=self._line, console=self._console, refresh_per_second=4, transient=False
            )
            self._shown.start()

    def update(self, record: Record) -> None:
        # Running means over about ten steps: a single batch says little.
        count, unit = record.pace()
        rate, loss = count / max(record.seconds, 1e-9), self._standing.loss
        self._rate = rate if self._rate is None else 0.9 * self._rate + 0.1 * rate
        self._standing = replace(
            self._standing,
            done=record.step,
            left=self._remaining(record.step),
            loss=record.loss if loss is None else 0.9 * loss + 0.1 * record.loss,
            rate=f"{self._rate:,.0f} {unit}/s",
        )
        wait = _SECONDS_BETWEEN_BARS if self._update is not None else _SECONDS_BETWEEN_LINES
        if self._shown is None and time.monotonic() - self._told >= wait:
            self._tell()

    def report(self, record: Record, *, is_best: bool) -> None:
        self._standing = replace(self._standing, metrics=dict(record.metrics))
        if self._shown is None:
            self._tell("  best" if is_best else "")

    def end(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None
        elif self._update is not None:
            self._tell()
            self._update = None

    def _tell(self, remark: str = "") -> None:
        self._told = time.monotonic()
        if self._update is not None:
            self._update(notebook_bar(self._standing))
        else:
            self._console.print(
                f"step {line(self._standing)}{remark}", highlight=False, markup=False, soft_wrap=True
            )

    def _line(self) -> Text:
        # A cell is left free: some terminals wrap a line that fills them.
        options = self._console.options
        return fitted(self._standing, options.max_width - 1, ascii_only=options.ascii_only)

    def _remaining(self, step: int) -> float | None:
        made = step - self._start
        return (time.monotonic() - self._began) / made * (self._standing.steps - step) if made > 0 else None


class Counting:
    """Shows how many rows of many are done: in a terminal as a line with a bar, elsewhere as a line every half minute."""

    def __init__(self, console: Console, unit: str, total: int) -> None:
        self._console = console
        self._standing = Standing(0, total, unit=unit)
        self._began = self._told = time.monotonic()
        self._live = Live(get_renderable=self._line, console=console, refresh_per_second=4, transient=True)
        self._is_live = console.is_terminal and not console.is_dumb_terminal

    def __enter__(self) -> Counting:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def reached(self, done: int) -> None:
        """So many are done."""
        spent = time.monotonic() - self._began
        left = spent / done * (self._standing.steps - done) if done else None
        self._standing = replace(self._standing, done=done, left=left)
        if not self._is_live and time.monotonic() - self._told >= _SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            self._console.print(line(self._standing), highlight=False, markup=False, soft_wrap=True)

    def _line(self) -> Text:
        options = self._console.options
        return fitted(self._standing, options.max_width - 1, ascii_only=options.ascii_only)


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
