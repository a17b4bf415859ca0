"""A head that is fitted before the prompt is trained, on the states that the initial prompt gives.

    min over W, b of   mean_i loss(W s_i + b, y_i) + (penalty / 2) ||W||^2

The states s_i are computed once, so that the head sees them hundreds of times for the price of one pass. Training then
begins at a probe of the frozen backbone, not below it. Kumar et al. 2022 (arXiv 2202.10054) do the same before they tune all
weights. Letters: n states, d width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from softprompt.data import by_length
from softprompt.model import PromptedModel, pool
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import TaskEncoder

RATE = 0.1
"""A fitted head is trained on with the prompt at this part of its usual learning rate."""

_MOST_ROWS = 5000  # more teach a head hardly anything, and each costs a pass of the backbone
_PENALTIES = (1.0, 0.1, 0.01, 1e-3, 1e-4)  # in units of the states' mean square, the strongest first
_HELD_OUT = 0.2


@dataclass(frozen=True, eq=False)
class _Known:
    """Rows and what a head reads of them, (n, d) float64, the outputs of a row beside each other."""

    rows: Sequence[EncodedRow]
    states: Tensor

    def loss(self, head: nn.Module, encoder: TaskEncoder) -> Tensor:
        return encoder.loss(head(self.states), self.rows).mean()


def fit_head(
    head: nn.Module,
    model: PromptedModel,
    encoder: TaskEncoder,
    train: Sequence[EncodedRow],
    validation: Sequence[EncodedRow],
    *,
    seed: int,
    batch_size: int,
) -> None:
    """Fit a head in place; the prompt stays as it is.

    head        of the model, float32
    model       the backbone with its initial prompt
    encoder     gives the loss of each row
    train       rows with answers; at most 5,000 of them are read
    validation  rows that choose the penalty; if there are none, a fifth of the training rows does
    seed        decides which rows are read
    batch_size  rows that are run together
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(train), generator=generator)[:_MOST_ROWS].tolist()
    rows = [train[i] for i in order]
    judges = [*validation][:_MOST_ROWS]
    held_out = 0 if judges else round(_HELD_OUT * len(rows))
    taught, judges = rows[held_out:], judges or rows[:held_out]
    wide = copy.deepcopy(head).double()
    known = _known(model, taught, batch_size)
    penalty = _PENALTIES[len(_PENALTIES) // 2]
    if judges:
        judged = _known(model, judges, batch_size)
        penalty = _best_penalty(wide, encoder, known, judged)
        if held_out:
            known = _Known([*known.rows, *judged.rows], torch.cat([known.states, judged.states]))
    _minimise(wide, encoder, known, penalty)
    with torch.no_grad():
        for own, found in zip(head.parameters(), wide.parameters(), strict=True):
            own.copy_(found)
    model.forget()


@torch.no_grad()
def _known(model: PromptedModel, rows: Sequence[EncodedRow], batch_size: int) -> _Known:
    order: list[EncodedRow] = []
    states: list[Tensor] = []
    for batch in by_length([len(row.context) for row in rows], batch_size):
        mine = [rows[i] for i in batch]
        states.append(pool(mine, model.states(mine))[0].double())
        order += mine
    return _Known(order, torch.cat(states))


def _best_penalty(head: nn.Module, encoder: TaskEncoder, known: _Known, judges: _Known) -> float:
    """The penalty whose head has the lowest loss on the judges; the head is left as it was."""
    start = copy.deepcopy(head.state_dict())
    losses: dict[float, float] = {}
    for penalty in _PENALTIES:  # each begins where the stronger one ended
        _minimise(head, encoder, known, penalty)
        with torch.no_grad():
            losses[penalty] = judges.loss(head, encoder).item()
    head.load_state_dict(start)
    return min(losses, key=losses.__getitem__)


def _minimise(head: nn.Module, encoder: TaskEncoder, known: _Known, penalty: float) -> None:
    """L-BFGS over all rows at once: it needs no learning rate."""
    scale = penalty * known.states.square().mean().item()
    parameters = [*head.parameters()]
    weights = [parameter for parameter in parameters if parameter.ndim > 1]
    optimizer = torch.optim.LBFGS(parameters, max_iter=100, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = known.loss(head, encoder)
            loss = loss + scale / 2 * torch.stack([weight.square().sum() for weight in weights]).sum()
            loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
