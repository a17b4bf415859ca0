"""A run during training: its own part before, between and after the steps of the loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list

from softprompt.concerns import nothing_learned
from softprompt.data import batches
from softprompt.errors import CheckpointError, TrainingDiverged
from softprompt.outputs import EncodedRow
from softprompt.state import copy_tensors
from softprompt.training.callbacks import STOP
from softprompt.training.checkpoint import (
    RunState,
    discard_checkpoint,
    load_checkpoint,
    run_identity,
    save_checkpoint,
)
from softprompt.training.diagnosis import diverged
from softprompt.training.interrupts import interrupts_held
from softprompt.training.parallel import Step, synchronize
from softprompt.training.progress import Progress, Record, Silent
from softprompt.training.recipe import Recipe, lr_factor
from softprompt.training.run import Run, TrainingResult
from softprompt.training.steps import Taken


class OngoingRun:
    """A run with its optimizer and all that changes while it is trained.

    number   of the run among those that are trained together
    state    where it stands, as a checkpoint holds it
    outcome  its result, or the error if it diverged; None: it is still trained
    """

    def __init__(self, number: int, run: Run, accelerator: Accelerator) -> None:
        self.number = number
        self.run = run
        self.accelerator = accelerator
        self.optimizer = build_optimizer(run.groups, run.recipe)
        self.state = RunState()
        self.outcome: TrainingResult | TrainingDiverged | None = None
        self._watcher: Progress = Silent()
        if run.progress is not None and accelerator.is_main_process:
            self._watcher = run.progress
        self._callbacks = run.callbacks if accelerator.is_main_process else ()
        self._stopping = False
        self._trained = list(run.parameters.values())
        self._peaks: list[float] = [group["lr"] for group in self.optimizer.param_groups]
        self._identity: Mapping[str, Any] = {}  # asked for only where there is a checkpoint
        self._order: Iterator[list[int]] = iter(())
        self._resumed_after = 0
        self._saved = (0, 0)  # the steps done and evaluated that the checkpoint in the folder holds
        self._began = self._ended = False

    def begin(self) -> None:
        """Resume from the checkpoint, if there is one, and tell the watcher. Raises CheckpointError."""
        run = self.run
        if run.folder is not None:
            self._identity = run_identity(
                recipe=run.recipe,
                groups=run.groups,
                parameters=run.parameters,
                rows=run.rows,
                main_metric=run.main_metric,
                start=run.start,
                facts=run.facts,
                content=run.content,
            )
        if run.folder is not None and run.resume:
            found = load_checkpoint(run.folder, run.parameters, self.optimizer, self._identity, run.rows)
            self.state = found or self.state
            copy_tensors(self.state.tallies, into=run.tallies)
        elif run.folder is not None and self.accelerator.is_main_process:
            discard_checkpoint(run.folder)
        synchronize(self.accelerator, [*self._trained, *run.tallies.values()], self.state.step)
        self._resumed_after = self.state.step
        self._saved = self._progress_made()
        self._order = _batches_from(self.state.step, len(run.rows), run.recipe)
        self._watcher.begin(run.recipe.steps, self.state.step)
        self._began = True
        if run.judge_start and self.state.step == 0:
            self._judge_start()

    def next_step(self) -> Step:
        """The rows and the seed of the next step; both depend on recipe and step alone."""
        recipe, number = self.run.recipe, self.run.number
        batch = [self.run.rows[i] for i in next(self._order)]
        if number is not None:
            batch = [replace(row, prompt=number) for row in batch]
        return Step(
            batch=batch,
            trained=self._trained,
            accumulation=recipe.accumulation,
            seed=recipe.seed * 1_000_003 + self.state.step,
            tallies=[*self.run.tallies.values()],
        )

    def apply(self, taken: Taken) -> None:
        """Let the optimizer take the step. If it is not finite, the best tensors are restored and the run has diverged."""
        started = time.perf_counter()
        recipe, state, norm = self.run.recipe, self.state, taken.norm.item()
        factor = lr_factor(recipe, state.step)
        if not taken.is_finite:
            self.outcome = diverged(state, taken.loss, norm, self._peaks[0] * factor)
            copy_tensors(state.best, into=self.run.parameters)
            self.end()
            return
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor
        if recipe.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._trained, recipe.clip_norm, taken.norm)
        with interrupts_held():
            self.optimizer.step()
            state.step += 1
            state.tallies = {name: tally.clone() for name, tally in self.run.tallies.items()}
            record = Record(
                step=state.step,
                loss=taken.loss,
                lr=self._peaks[0] * factor,
                gradient_norm=norm,
                tokens=sum(count_tokens(row) for row in taken.step.batch),
                seconds=taken.seconds + time.perf_counter() - started,
                penalty=taken.penalty,
                rows=len(taken.step.batch),
                images=sum(row.media is not None and row.media.ndim == 3 for row in taken.step.batch),
            )
            state.history.append(record)
        self._watcher.update(record)
        self._heed([callback.on_step(record) for callback in self._callbacks])
        self.accelerator.log({"loss": record.loss, "lr": record.lr, "gradient_norm": norm}, step=record.step)

    def evaluate_if_due(self) -> None:
        """Evaluate after every so many steps and after the last one, and remember the best tensors."""
        state, recipe = self.state, self.run.recipe
        on_time = state.step % recipe.evaluation_interval == 0 or state.step == recipe.steps or self._stopping
        # `evaluated` is behind after every step, and also where a run was interrupted in an evaluation.
        if not on_time or state.step <= state.evaluated:
            return
        self._evaluate()

    def checkpoint_if_due(self) -> None:
        """Write a checkpoint after every so many steps and at the end, unless it is there already."""
        on_time = self.state.step % self.run.recipe.checkpoint_interval == 0 or self._is_over()
        if on_time:
            self._save()

    def finish_if_over(self) -> None:
        """After the last step, or when patience ran out, restore the best tensors and set the result."""
        if not self._is_over():
            return
        state = self.state
        concern = nothing_learned([r.loss for r in state.history], [r.gradient_norm for r in state.history])
        self.outcome = TrainingResult(
            steps=state.step,
            resumed_after=self._resumed_after,
            stopped_early=state.step < self.run.recipe.steps,
            best_step=state.best_step,
            metrics=state.history[state.best_step - 1].metrics if state.best_step else {},
            history=tuple(state.history),
            concern=concern if self.accelerator.is_main_process else None,
        )
        self.end()
        copy_tensors(state.best, into=self.run.parameters)

    def save_interrupted(self, interrupt: KeyboardInterrupt) -> None:
        """Write a checkpoint of a run that is still trained, and note in the interrupt how it can be resumed."""
        if not self._began or self.outcome is not None:
            return
        folder = self.run.folder
        interrupt.add_note(
            f"training was interrupted after step {self.state.step} of {self.run.recipe.steps}"
        )
        if folder is None:
            interrupt.add_note("nothing was saved: with a folder for checkpoints it could be resumed")
            return
        try:
            self._save()
            interrupt.add_note(f"start it again with the folder {folder} to resume")
        except CheckpointError as error:
            interrupt.add_note(str(error))

    def end(self) -> None:
        """Tell watcher and trackers once that the run is over, for whatever reason."""
        if self._ended:
            return
        self._ended = True
        if self._began:
            self._watcher.end()
        for tracker in self.accelerator.trackers:  # not end_training(), which also ends the process group
            tracker.finish()

    def _is_over(self) -> bool:
        recipe = self.run.recipe
        out_of_patience = recipe.patience is not None and self.state.stale >= recipe.patience
        return self.state.step == recipe.steps or out_of_patience or self._stopping

    def _progress_made(self) -> tuple[int, int]:
        return self.state.step, self.state.evaluated

    def _save(self) -> None:
        if self.run.folder is None or self._saved == self._progress_made():
            return
        if self.accelerator.is_main_process:
            save_checkpoint(self.run.folder, self.state, self.run.parameters, self.optimizer, self._identity)
            for callback in self._callbacks:
                callback.on_save(self.state.step, self.run.folder)
        self._saved = self._progress_made()

    def _heed(self, answers: Sequence[Any]) -> None:
        """Note whether a callback wants the run to stop; all processes stop together."""
        wanted = [any(isinstance(answer, str) and answer == STOP for answer in answers)]
        if self.run.callbacks and self.accelerator.num_processes > 1:
            broadcast_object_list(wanted)
        self._stopping = self._stopping or wanted[0]

    def _judge_start(self) -> None:
        """Keep the initial tensors as the best so far."""
        state, metrics = self.state, self._metrics()
        if metrics is not None and not math.isnan(metrics[str(self.run.main_metric)]):
            state.best = {name: p.detach().clone() for name, p in self.run.parameters.items()}
            state.best_step, state.best_metric = 0, metrics[str(self.run.main_metric)]

    def _metrics(self) -> dict[str, float] | None:
        """The metrics of the current tensors, the same on every process; None: nothing is evaluated."""
        metrics = _metrics(self.run.evaluate, self.accelerator)
        if metrics is not None and self.run.main_metric not in metrics:
            raise ValueError(
                f"the evaluation has no metric {self.run.main_metric!r}; it has {sorted(metrics)}"
            )
        return metrics

    def _evaluate(self) -> None:
        """Note and report the metrics of the current tensors, and keep these if they are the best so far."""
        state, main_metric = self.state, self.run.main_metric
        metrics = self._metrics()
        is_best = False
        if metrics is not None:
            # A metric that is NaN is never best.
            sign = 1 if self.run.recipe.greater_is_better else -1
            is_best = sign * metrics[str(main_metric)] > (
                -math.inf if state.best_metric is None else sign * state.best_metric
            )
        # Copied first: what follows is short, so that an interrupt waits for no more than that. The report belongs to it: a
        # resumed run does not evaluate this step again.
        best = {name: p.detach().clone() for name, p in self.run.parameters.items()} if is_best else {}
        with interrupts_held():
            if metrics is not None:
                state.history[-1] = replace(state.history[-1], metrics=metrics)
                state.stale = 0 if is_best else state.stale + 1
            if metrics is not None and is_best:
                state.best, state.best_step, state.best_metric = best, state.step, metrics[str(main_metric)]
            state.evaluated = state.step
            record = state.history[-1]
            first = {} if metrics is None else {str(main_metric): metrics[str(main_metric)]}
            self._watcher.report(replace(record, metrics={**first, **record.metrics}), is_best=is_best)
            self.accelerator.log({f"eval/{name}": x for name, x in record.metrics.items()}, step=state.step)
        self._heed([callback.on_evaluate(record, is_best=is_best) for callback in self._callbacks])


def begin_accelerator(run: Run) -> Accelerator:
    """The process group and the trackers of a run; the backbone decides device and precision.

    Raises ValueError for trackers that are not installed, or that need a folder where there is none.
    """
    recipe, folder = run.recipe, run.folder
    missing = set(recipe.trackers) - {str(tracker) for tracker in get_available_trackers()}
    if missing:
        raise ValueError(
            f"trackers that are not installed: {sorted(missing)}; install them with pip, or leave them out"
        )
    if "tensorboard" in recipe.trackers and folder is None:
        raise ValueError("trackers has 'tensorboard', which writes files, but folder is None: give a folder")
    accelerator = Accelerator(log_with=list(recipe.trackers) or None, project_dir=folder)
    if recipe.trackers:
        settings = asdict(recipe) | {"betas": str(recipe.betas), "trackers": str(recipe.trackers)}
        accelerator.init_trackers(
            "softprompt", {name: value for name, value in settings.items() if value is not None}
        )
    return accelerator


def build_optimizer(groups: Sequence[Mapping[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer over groups of parameters that each have their own `lr`.

    Adafactor is torch's: its step is also at most 1 / sqrt(step), times the root mean square of the tensor.
    """
    own = [dict(group) for group in groups]
    if recipe.optimizer == "adafactor":
        return torch.optim.Adafactor(own, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(own, betas=recipe.betas, weight_decay=recipe.weight_decay)


def count_tokens(row: EncodedRow) -> int:
    """Context and target tokens of a row; a virtual token of the template counts as one."""
    return len(row.context) + sum(len(target) for target in row.targets)


def _batches_from(step: int, n_rows: int, recipe: Recipe) -> Iterator[list[int]]:
    """Row indices of each batch, from the one after `step` steps on, without end."""
    first_epoch, skipped = divmod(step, math.ceil(n_rows / recipe.batch_size))
    for epoch in itertools.count(first_epoch):
        yield from batches(n_rows, recipe.batch_size, recipe.seed, epoch)[skipped:]
        skipped = 0


def _metrics(
    evaluate: Callable[[], Mapping[str, float]] | None, accelerator: Accelerator
) -> dict[str, float] | None:
    """Evaluate on the main process and give every process the result; None: nothing is evaluated."""
    metrics: dict[str, float] | None = None
    if evaluate is not None and accelerator.is_main_process:
        with torch.no_grad():
            metrics = {name: float(value) for name, value in evaluate().items()}
    if accelerator.num_processes > 1:
        # Metrics, not decisions: every process then decides the same.
        [metrics] = broadcast_object_list([metrics])
    return metrics
