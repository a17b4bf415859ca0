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
from softprompt.outputs import EncodedRow


class Scorer(Protocol):
    """The model as training sees it."""

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        """What the task's loss is taken of: TargetLogits, or where a head answers its outputs."""
        ...


class RowLoss(Protocol):
    """The task as training sees it."""

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        """Loss of each row, (B,), differentiable."""
        ...


def synchronize(accelerator: Accelerator, trained: Sequence[nn.Parameter], step: int) -> None:
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
        for parameter in trained:
            parameter.copy_(broadcast(parameter.detach().to(accelerator.device)))


def backward(
    model: Scorer,
    encoder: RowLoss,
    batch: Sequence[EncodedRow],
    trained: Sequence[nn.Parameter],
    accumulation: int,
    accelerator: Accelerator,
) -> Tensor:
    """Gradients of the mean loss over the batch, on every process; returns that loss, ()."""
    mean = torch.zeros((), device=trained[0].device)
    for micro_batch in range(accumulation):
        # The rows of a micro-batch are the same however many processes share it.
        share = batch[micro_batch::accumulation][accelerator.process_index :: accelerator.num_processes]
        if not share:  # the last batch of an epoch may have fewer rows than there are shares
            continue
        losses = encoder.loss(model.score(share), share)  # (rows of the share,)
        if losses.shape != (len(share),):
            raise ValueError(
                f"the task's loss has shape {tuple(losses.shape)} for {len(share)} rows: expected one each"
            )
        if not losses.requires_grad:
            raise ValueError(
                "the loss depends on none of the trained parameters, so there is nothing to learn"
            )
        loss = losses.sum() / len(batch)
        loss.backward()
        mean = mean + loss.detach()
    for parameter in trained:
        if parameter.grad is None:  # not reached, or no rows here: every process must have the same tensors
            parameter.grad = torch.zeros_like(parameter)
    return _sum_over_processes(accelerator, trained, mean)


def _sum_over_processes(accelerator: Accelerator, trained: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
    """Add up the gradients in place and the loss, in one message of the widest dtype."""
    if accelerator.num_processes == 1:
        return loss
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), loss.reshape(1)])
    flat = accelerator.reduce(flat.to(accelerator.device), "sum")
    for gradient, total in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(total.view_as(gradient))
    return flat[-1]
