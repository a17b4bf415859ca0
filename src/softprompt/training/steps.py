"""Forward and backward of one step, for one run or for several that share a pass."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor

from softprompt.state import copy_tensors
from softprompt.training.parallel import RowLoss, Scorer, Step, backward
from softprompt.training.randomness import Streams


@dataclass(frozen=True)
class Taken:
    """What forward and backward found; the gradients are in the step's parameters.

    loss     mean over the rows of the batch
    penalty  the part of the loss that the method itself adds
    norm     of the gradient over all trained tensors, (), before clipping
    seconds  that the step took; of a pass that several runs shared, this run's share
    """

    step: Step
    loss: float
    penalty: float
    norm: Tensor
    seconds: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm.item())


def take_steps(
    model: Scorer, encoder: RowLoss, steps: Mapping[int, Step], streams: Streams, accelerator: Accelerator
) -> dict[int, Taken]:
    """Compute the gradients of a step of each run, all in one pass over their rows.

    model, encoder  as in `train_together`
    steps           by the number of the run
    streams         is seeded with the seed of each step
    Returns what was found, by the number of the run. Where loss or gradient of any run is not finite, each run's pass
    is repeated alone, so that it harms no other run.
    """
    started = time.perf_counter()
    before = [[tally.clone() for tally in step.tallies] for step in steps.values()]
    streams.begin({number: step.seed for number, step in steps.items()})
    losses = backward(model, encoder, [*steps.values()], accelerator)
    found = []
    for step, (loss, penalty) in zip(steps.values(), losses, strict=True):
        gradients = [parameter.grad for parameter in step.trained if parameter.grad is not None]
        found.append((step, loss.item(), penalty.item(), torch.nn.utils.get_total_norm(gradients)))
    seconds = (time.perf_counter() - started) / len(steps)
    taken = {number: Taken(*values, seconds) for number, values in zip(steps, found, strict=True)}
    if len(steps) == 1 or all(one.is_finite for one in taken.values()):
        return taken
    # Not every kernel keeps a value that is not finite in its own row: 0 * NaN is NaN in the rows beside it too.
    for step, tallies in zip(steps.values(), before, strict=True):
        copy_tensors(dict(enumerate(tallies)), into=dict(enumerate(step.tallies)))
    alone: dict[int, Taken] = {}
    for number, step in steps.items():
        alone |= take_steps(model, encoder, {number: step}, streams, accelerator)
    return alone
