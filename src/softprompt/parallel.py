"""Data parallelism by hand: many processes take the same step as one.

There is no wrapper around the model. Each process scores its share of every batch, and the gradients of the
few trained tensors are added up. Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        """What the task's loss is taken of: TargetLogits, or where a head answers its outputs; it may be Penalized."""
        ...


class RowLoss(Protocol):
    """The task as training sees it."""

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        """Loss of each row, (B,), differentiable."""
        ...


def synchronize(accelerator: Accelerator, tensors: Sequence[Tensor], step: int) -> None:
    """Every process begins with the main one's tensors, at the same step."""
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


def backward(
    model: Scorer,
    encoder: RowLoss,
    batch: Sequence[EncodedRow],
    trained: Sequence[nn.Parameter],
    accumulation: int,
    accelerator: Accelerator,
    tallies: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss over the batch, on every process; returns that loss, (), and the method's share in it.

    tallies: counts that grow while rows are scored.
    """
    mean = torch.zeros((), device=trained[0].device)
    penalty = torch.zeros_like(mean)
    before = [tally.clone() for tally in tallies]
    for micro_batch in range(accumulation):
        # The rows of a micro-batch are the same however many processes share it.
        share = batch[micro_batch::accumulation][accelerator.process_index :: accelerator.num_processes]
        if not share:  # the last batch of an epoch may have fewer rows than there are shares
            continue
        answers = model.score(share)
        added = answers.penalty if isinstance(answers, Penalized) else None
        losses = encoder.loss(answers.answers if isinstance(answers, Penalized) else answers, share)  # (B,)
        if losses.shape != (len(share),):
            raise ValueError(
                f"the task's loss has shape {tuple(losses.shape)} for {len(share)} rows: expected one each"
            )
        if not losses.requires_grad:
            raise ValueError(
                "the loss depends on none of the trained parameters, so there is nothing to learn"
            )
        if added is not None:
            losses = losses + added
            penalty = penalty + added.detach().expand(len(share)).sum() / len(batch)
        loss = losses.sum() / len(batch)
        loss.backward()
        mean = mean + loss.detach()
    for parameter in trained:
        if parameter.grad is None:  # not reached, or no rows here: every process must have the same tensors
            parameter.grad = torch.zeros_like(parameter)
    if accelerator.num_processes == 1:
        return mean, penalty
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    grown = [tally - start for tally, start in zip(tallies, before, strict=True)]
    *sums, mean, penalty = _sum_over_processes(accelerator, [*gradients, *grown, mean, penalty])
    for tensor, total in zip(gradients, sums, strict=False):
        tensor.copy_(total)
    for tally, start, total in zip(tallies, before, sums[len(gradients) :], strict=True):
        tally.copy_(start + total)
    return mean, penalty


def _sum_over_processes(accelerator: Accelerator, tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor, in one message of the widest dtype."""
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    flat = accelerator.reduce(flat.to(accelerator.device), "sum")
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
