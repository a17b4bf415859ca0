"""Data parallelism by hand: many processes take the same step as one.

There is no wrapper around the model: each process scores its share of every batch, and the gradients of the
few trained tensors are added up. Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor, nn

from softprompt.errors import CheckpointError
from softprompt.outputs import EncodedRow, Penalized


class Scorer(Protocol):
    """The model as training sees it."""

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        """The input of the task's loss: TargetLogits, or a head's outputs; either may be Penalized."""
        ...


class RowLoss(Protocol):
    """The task as training sees it."""

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        """Loss of each row, (B,), differentiable."""
        ...


def synchronize(accelerator: Accelerator, tensors: Sequence[Tensor], step: int) -> None:
    """Give every process the main process's tensors, and check that all resume at the same step.

    tensors  overwritten in place
    step     optimizer steps that this process's checkpoint holds
    Raises CheckpointError where the main process is at another step.
    """
    if accelerator.num_processes == 1:
        return
    [main_step] = broadcast_object_list([step])
    if main_step != step:
        raise CheckpointError(
            f"the main process resumes after step {main_step}, process {accelerator.process_index} after "
            f"step {step}: the checkpoint folder must be the same, on storage that all processes share"
        )
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_(broadcast(tensor.detach().to(accelerator.device)))


@dataclass(frozen=True)
class Step:
    """A step that is to be taken: the gradient of the mean loss over a batch.

    batch         the rows
    trained       the tensors whose `grad` is overwritten with the gradient
    accumulation  micro-batches that the batch is split into
    seed          of everything random in the step
    tallies       counts that grow while rows are scored
    """

    batch: Sequence[EncodedRow]
    trained: Sequence[nn.Parameter]
    accumulation: int
    seed: int
    tallies: Sequence[Tensor] = ()

    def share(self, micro_batch: int, accelerator: Accelerator) -> Sequence[EncodedRow]:
        """The rows of a micro-batch that this process scores. The shares add up to the batch for any number of processes."""
        if micro_batch >= self.accumulation:
            return ()
        rows = self.batch[micro_batch :: self.accumulation]
        return rows[accelerator.process_index :: accelerator.num_processes]


def backward(
    model: Scorer, encoder: RowLoss, steps: Sequence[Step], accelerator: Accelerator
) -> list[tuple[Tensor, Tensor]]:
    """Compute the gradients of all steps, on every process, in one pass over their rows.

    steps  no two may train the same tensor; their rows are scored in this order
    Returns for each step the loss and the part of it that the method adds, () each.
    Raises ValueError where the task's loss is not one number a row, or depends on no trained tensor.
    """
    found = [torch.zeros(2, device=step.trained[0].device) for step in steps]
    before = [[tally.clone() for tally in step.tallies] for step in steps]
    for parameter in (parameter for step in steps for parameter in step.trained):
        parameter.grad = None
    for micro_batch in range(max(step.accumulation for step in steps)):
        shares = [step.share(micro_batch, accelerator) for step in steps]
        rows = [row for share in shares for row in share]
        if not rows:  # the last batch of an epoch may have fewer rows than there are shares
            continue
        losses, added = _row_losses(model, encoder, rows)
        sizes = [len(share) for share in shares]
        parts = [part.sum() / len(step.batch) for part, step in zip(losses.split(sizes), steps, strict=True)]
        torch.stack(parts).sum().backward()
        for n, (part, extra) in enumerate(zip(parts, added.split(sizes), strict=True)):
            found[n] = found[n] + torch.stack([part.detach(), extra.sum() / len(steps[n].batch)])
    for parameter in (parameter for step in steps for parameter in step.trained):
        if parameter.grad is None:  # not reached, or no rows here: every process must have the same tensors
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes > 1:
        tallies = [tally for step in steps for tally in step.tallies]
        starts = [tally for own in before for tally in own]
        grown = [tally - start for tally, start in zip(tallies, starts, strict=True)]
        gradients = [p.grad for step in steps for p in step.trained if p.grad is not None]
        sums = _sum_over_processes(accelerator, [*gradients, *grown, *found])
        for tensor, total in zip(gradients, sums, strict=False):
            tensor.copy_(total)
        for tally, start, total in zip(tallies, starts, sums[len(gradients) :], strict=False):
            tally.copy_(start + total)
        found = sums[len(gradients) + len(grown) :]
    return [(sums[0], sums[1]) for sums in found]


def _row_losses(model: Scorer, encoder: RowLoss, rows: Sequence[EncodedRow]) -> tuple[Tensor, Tensor]:
    """The loss of each row with what the method adds, and what the method adds alone, without gradient; (B,) each."""
    answers = model.score(rows)
    penalty = answers.penalty if isinstance(answers, Penalized) else None
    losses = encoder.loss(answers.answers if isinstance(answers, Penalized) else answers, rows)  # (B,)
    if losses.shape != (len(rows),):
        raise ValueError(
            f"the task's loss has shape {tuple(losses.shape)} for {len(rows)} rows: expected one each"
        )
    if not losses.requires_grad:
        raise ValueError("the loss depends on none of the trained parameters, so there is nothing to learn")
    if penalty is None:
        return losses, torch.zeros_like(losses)
    return losses + penalty, penalty.detach().expand(len(rows))


def _sum_over_processes(accelerator: Accelerator, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor, in one message of the widest dtype."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    flat = accelerator.reduce(flat.to(accelerator.device), "sum")
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
