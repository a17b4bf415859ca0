"""A linear probe over a whole grid of learning rates and weight decays, from one pass through the backbone.

The frozen states of each row are computed once (`features/cache.py`), and the heads of all settings are trained side by
side as one linear layer. Each is the head that `fit(LinearProbe(), learning_rate=..., weight_decay=...)` trains, up to
rounding: same start, batches, schedule, clipping and AdamW. Choosing both on validation rows, equal scores to the
smaller rate, is the protocol of Jia et al., ECCV 2022 (arXiv 2203.12119); their rates are SGD's, ours AdamW's.

Letters: M settings, B rows, n outputs of B rows, K numbers of an output, d width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone
from softprompt.data import Rows, batches
from softprompt.features.cache import FeatureCache
from softprompt.protocols._probe_rows import ReadRows, read_for_probes
from softprompt.store.identity import settings_of
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.training.recipe import Recipe, lr_factor
from softprompt.tuned import TunedPrompt

LEARNING_RATES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (0.01, 0.001, 0.0001, 0.0)

_EPS = 1e-8  # AdamW's, as torch has it


@dataclass(frozen=True)
class GridScore:
    """One setting of a grid: the main metric at its best step on the validation rows."""

    learning_rate: float
    weight_decay: float
    score: float
    step: int


@dataclass(frozen=True)
class ProbeGrid:
    """The result of a grid.

    best    the probe with the best score; among equals, the one with the smaller rate
    scores  of all settings, rate by rate
    """

    best: TunedPrompt
    scores: tuple[GridScore, ...]


def probe_grid(
    backbone: Backbone,
    task: Task,
    train: Rows,
    validation: Rows,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    recipe: Recipe | None = None,
    cache_features: bool | str | Path | FeatureCache = True,
) -> ProbeGrid:
    """Train a linear probe with every pair of rate and decay, and choose by the validation rows.

    train, validation  as in `fit`
    recipe             of all runs; the grid replaces its rate and decay; AdamW, without patience
    cache_features     where states are cached (see `fit`); False means True, since a grid in one pass needs the states

    Raises ValueError for an empty grid, no rows, a task without a head, and recipes with another optimizer or patience.
    """
    recipe = recipe or Recipe()
    settings = list(product(learning_rates, weight_decays))
    _check(settings, recipe)
    data = read_for_probes(backbone, task, train, validation, recipe, cache_features)
    heads = _Heads(data.head, settings, recipe)
    best: dict[int, tuple[float, int, dict[str, Any], dict[str, Tensor]]] = {}
    order = _batches(len(data.train.rows), recipe)
    for step in range(recipe.steps):
        heads.step(data.encoder, data.train, next(order), lr_factor(recipe, step))
        if (step + 1) % recipe.evaluation_interval and step + 1 != recipe.steps:
            continue
        for m, mine in enumerate(heads.outputs(data.held_out.all())):  # (M, n, K)
            metrics = data.judge(mine)
            score = float(metrics[task.main_metric])
            if m not in best or score > best[m][0]:
                best[m] = (score, step + 1, metrics, heads.state(m))
    chosen = max(range(len(settings)), key=lambda m: (best[m][0], -settings[m][0], -m))
    score, step, metrics, tensors = best[chosen]
    rate, decay = settings[chosen]
    used = replace(recipe, learning_rate=rate, weight_decay=decay)
    facts = {"grid": len(settings), "best_step": step, "steps_made": recipe.steps}
    tuned = data.tuned(tensors, recipe.max_tokens, settings_of(used) | facts, metrics)
    scores = [GridScore(*settings[m], best[m][0], best[m][1]) for m in range(len(settings))]
    return ProbeGrid(tuned, tuple(scores))


class _Heads:
    """M linear heads with equal initial values, each with its own learning rate and weight decay: AdamW on stacked tensors."""

    def __init__(self, head: nn.Linear, settings: Sequence[tuple[float, float]], recipe: Recipe) -> None:
        count = len(settings)
        self.recipe = recipe
        self.tensors = [
            tensor.detach().expand(count, *tensor.shape).clone().requires_grad_()
            for tensor in (head.weight, head.bias)
        ]  # (M, K, d), (M, K)
        self.means = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.squares = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.rates = head.weight.new_tensor([rate for rate, _ in settings])
        self.decays = head.weight.new_tensor([decay for _, decay in settings])
        self.steps = 0

    def outputs(self, states: Tensor) -> Tensor:
        """(n, d) -> (M, n, K), one product for all heads."""
        weight, bias = self.tensors
        found = states.to(weight.dtype) @ weight.flatten(0, 1).T  # (n, d) x (M K, d) -> (n, M K)
        return found.unflatten(-1, weight.shape[:2]).transpose(0, 1) + bias[:, None]

    def step(self, encoder: TaskEncoder, states: ReadRows, batch: Sequence[int], factor: float) -> None:
        rows = [states.rows[i] for i in batch]
        outputs = self.outputs(states.of(batch))
        # A task's loss is that of each row alone: the heads' answers are those of so many rows more.
        losses = encoder.loss(outputs.flatten(0, 1), rows * len(outputs))  # (M B,)
        (losses.sum() / len(rows)).backward()
        gradients = [tensor.grad for tensor in self.tensors if tensor.grad is not None]
        norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()  # (M,)
        if not norm.isfinite().all():
            raise ValueError(
                f"the gradient is not finite at step {self.steps + 1}: lower the largest learning rate"
            )
        if self.recipe.clip_norm is not None:
            scale = (self.recipe.clip_norm / (norm + 1e-6)).clamp(max=1.0)  # as torch clips
            gradients = [gradient * _each(scale, gradient) for gradient in gradients]
        self.steps += 1
        (b1, b2), rates = self.recipe.betas, self.rates * factor
        with torch.no_grad():
            for tensor, gradient, mean, square in zip(
                self.tensors, gradients, self.means, self.squares, strict=True
            ):
                tensor.mul_(_each(1 - rates * self.decays, tensor))
                mean.lerp_(gradient, 1 - b1)
                square.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
                spread = (square / (1 - b2**self.steps)).sqrt() + _EPS
                tensor.sub_(_each(rates, tensor) / (1 - b1**self.steps) * mean / spread)
                tensor.grad = None

    def state(self, m: int) -> dict[str, Tensor]:
        weight, bias = self.tensors
        return {"weight": weight[m].detach().clone(), "bias": bias[m].detach().clone()}


def _each(values: Tensor, like: Tensor) -> Tensor:
    """(M,) -> (M, 1, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def _batches(rows: int, recipe: Recipe) -> Iterator[list[int]]:
    epoch = 0
    while True:
        yield from batches(rows, recipe.batch_size, recipe.seed, epoch)
        epoch += 1


def _check(settings: Sequence[tuple[float, float]], recipe: Recipe) -> None:
    if not settings:
        raise ValueError("the grid is empty: give learning_rates and weight_decays")
    if any(rate <= 0 or decay < 0 for rate, decay in settings):
        raise ValueError("the grid has a learning rate that is not positive, or a negative weight decay")
    if recipe.optimizer != "adamw" or recipe.patience is not None:
        raise ValueError(
            f"the recipe has optimizer {recipe.optimizer!r} and patience {recipe.patience}: the heads of a grid are trained"
            " side by side with AdamW for all of their steps"
        )
