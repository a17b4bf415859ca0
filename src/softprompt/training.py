"""The training loop: one for every method, backbone and task, on one process or many.

It knows trained tensors, a model that scores rows and a loss for each row, nothing else.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from softprompt.checkpoint import RunState, load_checkpoint, run_identity, save_checkpoint
from softprompt.data import batches
from softprompt.diagnosis import diverged, warn_nothing_learned
from softprompt.errors import CheckpointError
from softprompt.interrupts import interrupts_held
from softprompt.outputs import EncodedRow
from softprompt.parallel import RowLoss, Scorer, backward, synchronize
from softprompt.progress import Progress, Record, Silent
from softprompt.recipe import Recipe, lr_factor


@dataclass(frozen=True)
class TrainingResult:
    """How a run went. The best tensors are in the parameters.

    steps          optimizer steps made, those before a resume included
    resumed_after  steps that were made before it was resumed; 0: it was not
    stopped_early  whether patience ended the run
    best_step      the step whose tensors were kept; None: nothing was evaluated, the last tensors stand
    metrics        of the evaluation after that step
    history        one record per step
    """

    steps: int
    resumed_after: int
    stopped_early: bool
    best_step: int | None
    metrics: Mapping[str, float]
    history: tuple[Record, ...]

    @property
    def seconds(self) -> float:
        """Time spent in steps, without evaluations and checkpoints."""
        return sum(record.seconds for record in self.history)

    @property
    def tokens(self) -> int:
        """Context and target tokens trained on, repetitions included."""
        return sum(record.tokens for record in self.history)


def train(
    model: Scorer,
    parameters: Mapping[str, nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    encoder: RowLoss,
    rows: Sequence[EncodedRow],
    recipe: Recipe,
    *,
    evaluate: Callable[[], Mapping[str, float]] | None = None,
    main_metric: str | None = None,
    folder: Path | None = None,
    resume: bool = True,
    start: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
    tallies: Mapping[str, Tensor] | None = None,
) -> TrainingResult:
    """Train `parameters` in place and leave the best tensors in them.

    parameters   everything that is trained, by name; on one device, each requiring a gradient
    groups       optimizer groups over exactly these parameters, each with its `lr`, the peak learning rate
    evaluate     metrics of the current tensors, run without gradients on the main process; the highest
                 `main_metric` decides which tensors are best, the earlier of two equal ones
    folder       where checkpoint.safetensors and local trackers are written; None: nowhere
    resume       go on from the checkpoint in `folder`, if there is one; else start anew and replace it
    start        what the parameters were set to, where they do not begin as the recipe's seed has them: a checkpoint is
                 resumed from this start only
    progress     is told of each step and evaluation
    tallies      counts that grow in place while rows are scored, by name: kept in checkpoints, added up over processes

    The rows of a step, its learning rate and its randomness depend on nothing but recipe and step: a run that
    was killed and resumed ends with the same bits as one that was not, as far as the device's kernels repeat
    themselves. Called by every process of `accelerate launch` or torchrun, each takes its share of a batch.

    Raises ValueError for arguments that do not fit together, TrainingDiverged when loss or gradient is no
    finite number (the best tensors, else those before the step, are in the parameters), CheckpointError for a
    checkpoint that cannot be written or is of another run. On KeyboardInterrupt a checkpoint is written and
    the interrupt goes on. Warns with SoftpromptWarning when nothing was learned.
    """
    _check(parameters, groups, rows, evaluate, main_metric)
    trained, counts = list(parameters.values()), dict(tallies or {})
    device = trained[0].device
    accelerator = _accelerator(recipe, folder)
    watcher = progress if progress is not None and accelerator.is_main_process else Silent()
    optimizer = build_optimizer(groups, recipe)
    peaks: list[float] = [group["lr"] for group in optimizer.param_groups]
    identity = run_identity(recipe, groups, parameters, rows, main_metric, start)
    state = RunState()
    if folder is not None and resume:
        state = load_checkpoint(folder, parameters, optimizer, identity) or state
        _restore(counts, state.tallies)
    synchronize(accelerator, [*trained, *counts.values()], state.step)
    resumed_after, saved = state.step, (state.step, state.evaluated)
    order = _batches_from(state.step, len(rows), recipe)

    watcher.begin(recipe.steps, state.step)
    try:
        # What is random in a step is seeded for that step: the caller's generators are put back afterwards.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            while True:
                last = state.step == recipe.steps
                # `evaluated` lags behind where a run was interrupted in an evaluation: made up for here.
                if state.step > state.evaluated and (last or state.step % recipe.evaluation_interval == 0):
                    is_best = _evaluate(state, parameters, evaluate, main_metric, accelerator)
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

                batch = [rows[i] for i in next(order)]
                factor = lr_factor(recipe, state.step)
                for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                    group["lr"] = peak * factor
                _seed(device, recipe.seed * 1_000_003 + state.step)
                started = time.perf_counter()
                optimizer.zero_grad()
                loss, penalty = backward(
                    model, encoder, batch, trained, recipe.accumulation, accelerator, [*counts.values()]
                )
                gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
                norm = torch.nn.utils.get_total_norm(gradients)
                loss_value, norm_value = loss.item(), norm.item()
                if not (math.isfinite(loss_value) and math.isfinite(norm_value)):
                    _restore(parameters, state.best)
                    raise diverged(state, loss_value, norm_value, peaks[0] * factor)
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grads_with_norm_(trained, recipe.clip_norm, norm)
                with interrupts_held():
                    optimizer.step()
                    state.step += 1
                    state.tallies = {name: tally.clone() for name, tally in counts.items()}
                    record = Record(
                        step=state.step,
                        loss=loss_value,
                        lr=peaks[0] * factor,
                        gradient_norm=norm_value,
                        tokens=sum(count_tokens(row) for row in batch),
                        seconds=time.perf_counter() - started,
                        penalty=penalty.item(),
                    )
                    state.history.append(record)
                watcher.update(record)
                accelerator.log(
                    {"loss": record.loss, "lr": record.lr, "gradient_norm": norm_value}, step=record.step
                )
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

    _restore(parameters, state.best)
    if accelerator.is_main_process:
        warn_nothing_learned([r.loss for r in state.history], [r.gradient_norm for r in state.history])
    return TrainingResult(
        steps=state.step,
        resumed_after=resumed_after,
        stopped_early=state.step < recipe.steps,
        best_step=state.best_step,
        metrics=state.history[state.best_step - 1].metrics if state.best_step else {},
        history=tuple(state.history),
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


def _check(
    parameters: Mapping[str, nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    rows: Sequence[EncodedRow],
    evaluate: object,
    main_metric: str | None,
) -> None:
    if not parameters:
        raise ValueError("there is nothing to train: the method has no trained parameters")
    if not rows:
        raise ValueError("there are no training rows")
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise ValueError(f"parameters that are to be trained have requires_grad=False: {frozen}")
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    left_out = [name for name, parameter in parameters.items() if id(parameter) not in grouped]
    if left_out or len(grouped) != len(parameters):
        raise ValueError(
            f"the optimizer groups hold {len(grouped)} tensors, expected exactly the {len(parameters)} "
            f"trained ones; without a group: {left_out}"
        )
    if not all("lr" in group for group in groups):
        raise ValueError("each optimizer group needs its own 'lr'")
    if evaluate is not None and main_metric is None:
        raise ValueError(
            "evaluate was given without main_metric: say which of its metrics decides what is best"
        )


def _accelerator(recipe: Recipe, folder: Path | None) -> Accelerator:
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


def _seed(device: torch.device, seed: int) -> None:
    """Seed what a step draws from: alike on all processes, which run the same prompt, dropout included.

    Not torch.manual_seed: it seeds every kind of device, and takes a millisecond for those that are missing.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _restore(into: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            into[name].copy_(tensor)
