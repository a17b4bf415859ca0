"""Training: one way for every method, backbone and task, on one process or many, for one run or several at once.

It knows trained tensors, a model that scores rows and a loss for each row, nothing else.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from softprompt.errors import SoftpromptWarning, TrainingDiverged
from softprompt.outputs import EncodedRow
from softprompt.training.loop import Run, Taken, TrainingResult, begin_accelerator, restore, steps_of
from softprompt.training.parallel import RowLoss, Scorer, Step, backward
from softprompt.training.randomness import Streams


def train(model: Scorer, encoder: RowLoss, run: Run) -> TrainingResult:
    """Train the run's parameters in place and leave the best tensors in them.

    The rows of a step, its learning rate and its randomness depend on nothing but recipe and step: a run that
    was killed and resumed on the same machine, with as many threads, ends with the same bits as one that was
    not, as far as the device's kernels repeat themselves. Called by every process of `accelerate launch` or
    torchrun, each takes its share of a batch.

    Raises ValueError for arguments that do not fit together, TrainingDiverged when loss or gradient is no
    finite number (the best tensors, else those before the step, are in the parameters), CheckpointError for a
    checkpoint that cannot be written or is of another run. On KeyboardInterrupt a checkpoint is written and
    the interrupt goes on. Warns with SoftpromptWarning when nothing was learned.
    """
    [outcome] = train_together(model, encoder, [run])
    if isinstance(outcome, TrainingDiverged):
        raise outcome
    if outcome.concern is not None:
        warnings.warn(outcome.concern, SoftpromptWarning, stacklevel=2)
    return outcome


def train_together(
    model: Scorer, encoder: RowLoss, runs: Sequence[Run], streams: Streams | None = None
) -> list[TrainingResult | TrainingDiverged]:
    """Train several runs, each as `train` would alone: their steps share one pass, nothing else.

    model    scores the rows of all of them, a run's behind the other's, by what is trained in the run that they are of
    streams  what the model draws from, if anything

    A run that ended, or diverged, drops out: its result, or the error that `train` would raise, stands at its place.
    Raises whatever else `train` raises, if it happens to any of them. On KeyboardInterrupt all checkpoints are written.
    """
    for run in runs:
        _check(run.parameters, run.groups, run.rows, run.evaluate, run.main_metric)
    device = next(iter(runs[0].parameters.values())).device
    streams = streams or Streams(device)
    accelerators = [begin_accelerator(run.recipe, run.folder) for run in runs]
    loops = [steps_of(run, accelerator) for run, accelerator in zip(runs, accelerators, strict=True)]
    outcomes: dict[int, TrainingResult | TrainingDiverged] = {}
    asked: dict[int, Step] = {}

    def go_on(number: int, taken: Taken | None) -> None:
        """To the step that the run asks for next, or to its end."""
        try:
            asked[number] = loops[number].send(taken)
        except StopIteration as end:
            outcomes[number] = end.value
        except TrainingDiverged as error:
            outcomes[number] = error

    # What is random in a step is seeded for that step: the caller's generators are put back afterwards.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            for number in range(len(runs)):
                go_on(number, None)
            while asked:
                steps = dict(asked)
                asked.clear()
                for number, taken in zip(
                    steps, _take(model, encoder, steps, streams, accelerators[0]), strict=True
                ):
                    go_on(number, taken)
        except KeyboardInterrupt as interrupt:
            for loop in loops:
                with suppress(KeyboardInterrupt):
                    loop.throw(interrupt)
            raise
        finally:
            for loop in loops:
                loop.close()
    return [outcomes[number] for number in range(len(runs))]


def _take(
    model: Scorer, encoder: RowLoss, steps: Mapping[int, Step], streams: Streams, accelerator: Accelerator
) -> list[Taken]:
    """One step of each run, by the run's number."""
    started = time.perf_counter()
    before = [[tally.clone() for tally in step.tallies] for step in steps.values()]
    streams.begin({number: step.seed for number, step in steps.items()})
    losses = backward(model, encoder, [*steps.values()], accelerator)
    found = []
    for step, (loss, penalty) in zip(steps.values(), losses, strict=True):
        gradients = [parameter.grad for parameter in step.trained if parameter.grad is not None]
        found.append((loss.item(), penalty.item(), torch.nn.utils.get_total_norm(gradients)))
    # Of a step that several runs took together each has its share.
    seconds = (time.perf_counter() - started) / len(steps)
    taken = [Taken(*values, seconds) for values in found]
    if len(steps) == 1 or all(one.is_finite for one in taken):
        return taken
    # Not every kernel keeps what is not finite in one row from the rows beside it (0 * NaN is NaN): each by itself.
    for step, tallies in zip(steps.values(), before, strict=True):
        restore(dict(enumerate(step.tallies)), dict(enumerate(tallies)))
    return [_take(model, encoder, {number: step}, streams, accelerator)[0] for number, step in steps.items()]


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
