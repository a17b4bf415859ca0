"""The loop of a run: what it asks for and does with what it gets. How steps are taken, is training.py's affair."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from softprompt.concerns import nothing_learned
from softprompt.data import batches
from softprompt.errors import CheckpointError
from softprompt.outputs import EncodedRow
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


@dataclass(frozen=True, eq=False)
class Run:
    """What is trained, on which rows and how.

    parameters   everything that is trained, by name; on one device, each requiring a gradient
    groups       optimizer groups over exactly these parameters, each with its `lr`, the peak learning rate
    evaluate     metrics of the current tensors, run without gradients on the main process; the highest
                 `main_metric` decides which tensors are best, the earlier of two equal ones
    folder       where checkpoint.safetensors and local trackers are written; None: nowhere
    resume       go on from the checkpoint in `folder`, if there is one; else take it away and start anew
    start        what the parameters were set to, where they do not begin as the recipe's seed has them: a checkpoint is
                 resumed from this start only
    facts        what else the tensors depend on, by name, as JSON: a checkpoint is resumed with the same only
    progress     is told of each step and evaluation
    tallies      counts that grow in place while rows are scored, by name: kept in checkpoints, added up over processes
    number       the prompt that the rows are to carry, where runs share a model of several; None: the one they say
    """

    parameters: Mapping[str, nn.Parameter]
    groups: Sequence[Mapping[str, Any]]
    rows: Sequence[EncodedRow]
    recipe: Recipe
    evaluate: Callable[[], Mapping[str, float]] | None = None
    main_metric: str | None = None
    folder: Path | None = None
    resume: bool = True
    start: Mapping[str, Tensor] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress | None = None
    tallies: Mapping[str, Tensor] = field(default_factory=dict)
    number: int | None = None


@dataclass(frozen=True)
class Taken:
    """What became of a step: loss and the method's share in it, the gradient's norm, (), and the seconds it took."""

    loss: float
    penalty: float
    norm: Tensor
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm.item())


@dataclass(frozen=True)
class TrainingResult:
    """How a run went. The best tensors are in the parameters.

    steps          optimizer steps made, those before a resume included
    resumed_after  steps that were made before it was resumed; 0: it was not
    stopped_early  whether patience ended the run
    best_step      the step whose tensors were kept; None: nothing was evaluated, the last tensors stand
    metrics        of the evaluation after that step
    history        one record per step
    concern        what makes it doubtful that anything was learned, a sentence
    """

    steps: int
    resumed_after: int
    stopped_early: bool
    best_step: int | None
    metrics: Mapping[str, float]
    history: tuple[Record, ...]
    concern: str | None = None

    @property
    def seconds(self) -> float:
        """Time spent in steps, without evaluations and checkpoints."""
        return sum(record.seconds for record in self.history)

    @property
    def tokens(self) -> int:
        """Context and target tokens trained on, repetitions included."""
        return sum(record.tokens for record in self.history)


def steps_of(run: Run, accelerator: Accelerator) -> Generator[Step, Taken | None, TrainingResult]:
    """The loop: it yields each step, is sent what became of it, and returns when the run is over.

    Raises what `train` raises.
    """
    parameters, recipe, folder = run.parameters, run.recipe, run.folder
    trained, counts = list(parameters.values()), dict(run.tallies)
    watcher = run.progress if run.progress is not None and accelerator.is_main_process else Silent()
    optimizer = build_optimizer(run.groups, recipe)
    peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
    identity = run_identity(recipe, run.groups, parameters, run.rows, run.main_metric, run.start, run.facts)
    state = RunState()
    if folder is not None and run.resume:
        state = load_checkpoint(folder, parameters, optimizer, identity) or state
        restore(counts, state.tallies)
    elif folder is not None and accelerator.is_main_process:
        discard_checkpoint(folder)
    synchronize(accelerator, [*trained, *counts.values()], state.step)
    resumed_after, saved = state.step, (state.step, state.evaluated)
    order = _batches_from(state.step, len(run.rows), recipe)

    watcher.begin(recipe.steps, state.step)
    try:
        while True:
            last = state.step == recipe.steps
            # `evaluated` lags behind where a run was interrupted in an evaluation: made up for here.
            if state.step > state.evaluated and (last or state.step % recipe.evaluation_interval == 0):
                is_best = _evaluate(state, parameters, run.evaluate, run.main_metric, accelerator)
                watcher.report(state.history[-1], is_best=is_best)
                accelerator.log(_eval_names(state.history[-1].metrics), step=state.step)
            out_of_patience = recipe.patience is not None and state.stale >= recipe.patience
            finished = last or out_of_patience
            due = finished or state.step % recipe.checkpoint_interval == 0
            if folder is not None and due and saved != (state.step, state.evaluated):
                if accelerator.is_main_process:
                    save_checkpoint(folder, state, parameters, optimizer, identity)
                saved = (state.step, state.evaluated)
            if finished:
                break

            batch = [run.rows[i] for i in next(order)]
            if run.number is not None:
                batch = [replace(row, prompt=run.number) for row in batch]
            factor = lr_factor(recipe, state.step)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            seed = recipe.seed * 1_000_003 + state.step
            taken = yield Step(batch, trained, recipe.accumulation, seed, [*counts.values()])
            assert taken is not None
            started = time.perf_counter()
            norm = taken.norm.item()
            if not taken.is_finite:
                restore(parameters, state.best)
                raise diverged(state, taken.loss, norm, peaks[0] * factor)
            if recipe.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(trained, recipe.clip_norm, taken.norm)
            with interrupts_held():
                optimizer.step()
                state.step += 1
                state.tallies = {name: tally.clone() for name, tally in counts.items()}
                record = Record(
                    step=state.step,
                    loss=taken.loss,
                    lr=peaks[0] * factor,
                    gradient_norm=norm,
                    tokens=sum(count_tokens(row) for row in batch),
                    seconds=taken.seconds + time.perf_counter() - started,
                    penalty=taken.penalty,
                )
                state.history.append(record)
            watcher.update(record)
            accelerator.log({"loss": record.loss, "lr": record.lr, "gradient_norm": norm}, step=record.step)
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(f"training was interrupted after step {state.step} of {recipe.steps}")
        if folder is None:
            interrupt.add_note("nothing was saved: with a folder for checkpoints it could be resumed")
        else:
            try:
                if accelerator.is_main_process and saved != (state.step, state.evaluated):
                    save_checkpoint(folder, state, parameters, optimizer, identity)
                interrupt.add_note(f"start it again with the folder {folder} to go on from there")
            except CheckpointError as error:
                interrupt.add_note(str(error))
        raise
    finally:
        watcher.end()
        for tracker in accelerator.trackers:  # not end_training(), which also ends the process group
            tracker.finish()

    restore(parameters, state.best)
    concern = nothing_learned([r.loss for r in state.history], [r.gradient_norm for r in state.history])
    return TrainingResult(
        steps=state.step,
        resumed_after=resumed_after,
        stopped_early=state.step < recipe.steps,
        best_step=state.best_step,
        metrics=state.history[state.best_step - 1].metrics if state.best_step else {},
        history=tuple(state.history),
        concern=concern if accelerator.is_main_process else None,
    )


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


def begin_accelerator(recipe: Recipe, folder: Path | None) -> Accelerator:
    """The process group and the trackers. Device and precision are the backbone's own affair."""
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


def _batches_from(step: int, n_rows: int, recipe: Recipe) -> Iterator[list[int]]:
    """Row indices of each batch, from the one after `step` steps on, without end."""
    first_epoch, skipped = divmod(step, math.ceil(n_rows / recipe.batch_size))
    for epoch in itertools.count(first_epoch):
        yield from batches(n_rows, recipe.batch_size, recipe.seed, epoch)[skipped:]
        skipped = 0


def _evaluate(
    state: RunState,
    parameters: Mapping[str, nn.Parameter],
    evaluate: Callable[[], Mapping[str, float]] | None,
    main_metric: str | None,
    accelerator: Accelerator,
) -> bool:
    """Note the metrics of the current tensors, and keep these if they are the best so far: True then."""
    metrics: dict[str, float] | None = None
    if evaluate is not None and accelerator.is_main_process:
        with torch.no_grad():
            metrics = {name: float(value) for name, value in evaluate().items()}
    if accelerator.num_processes > 1:
        # Metrics, not decisions: every process then decides the same.
        [metrics] = broadcast_object_list([metrics])
    is_best = False
    if metrics is not None:
        if main_metric not in metrics:
            raise ValueError(f"the evaluation has no metric {main_metric!r}; it has {sorted(metrics)}")
        # A metric that is NaN is never best.
        is_best = metrics[main_metric] > (-math.inf if state.best_metric is None else state.best_metric)
        best = {name: parameter.detach().clone() for name, parameter in parameters.items()} if is_best else {}
    with interrupts_held():
        if metrics is not None:
            state.history[-1] = replace(state.history[-1], metrics=metrics)
            state.stale = 0 if is_best else state.stale + 1
        if metrics is not None and is_best:
            state.best, state.best_step, state.best_metric = best, state.step, metrics[str(main_metric)]
        state.evaluated = state.step
    return is_best


def _eval_names(metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in metrics.items()}


def restore(into: Mapping[Any, Tensor], tensors: Mapping[Any, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            into[name].copy_(tensor)
