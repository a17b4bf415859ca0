"""The best linear probe by validation rows: optima by L-BFGS, with a search for the regularization C.

Radford et al., ICML 2021 (arXiv 2103.00020), appendix A.3; for each C the minimum of

    sum over rows of L(W h + b)  +  |W|^2 / (2 C)

L is the task's own loss of a row: logistic regression where labels are told. As in scikit-learn, b is not held back. C is
searched for over powers of ten, then by halving a decade on either side of the best in log C, as in the released code of Zhou
et al., IJCV 2022 (arXiv 2109.01134).

Letters: n outputs of all rows, K numbers of an output, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.data import Rows
from softprompt.features.cache import FeatureCache
from softprompt.protocols._probe_rows import ProbeRows, read_for_probes
from softprompt.tasks.base import Task
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt

INVERSE_STRENGTHS = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)


@dataclass(frozen=True)
class StrengthScore:
    """One C: the main metric of its optimum on the validation rows.

    gradient  the largest number in the gradient of the mean loss of a row where L-BFGS stopped: how near the optimum is
    """

    c: float
    score: float
    gradient: float


@dataclass(frozen=True)
class ProbeSearch:
    """The result of a search.

    best    the probe with the best score; among equals, the one with the smaller C
    scores  of all C, in the order in which they were tried
    """

    best: TunedPrompt
    scores: tuple[StrengthScore, ...]


def probe_search(
    backbone: Backbone,
    task: Task,
    train: Rows,
    validation: Rows,
    *,
    inverse_strengths: Sequence[float] = INVERSE_STRENGTHS,
    halvings: int = 8,
    iterations: int = 1000,
    max_tokens: int | None = None,
    cache_features: bool | str | Path | FeatureCache = True,
) -> ProbeSearch:
    """Find the optimal linear probe for each C, and choose C by the validation rows. Nothing is random.

    train, validation  as in `fit`
    inverse_strengths  C: the larger, the less the weights are held back
    halvings           how often the decade on either side of the best C is halved; each time tries two more
    iterations         of L-BFGS at most, from zeros, in float64
    max_tokens         of a row, as in `fit`
    cache_features     where states are cached (see `fit`); they are in memory in any case

    Raises ValueError for no C, one that is not positive, halvings below 0, iterations below 1, no rows, a task without a head,
    and states that are no finite numbers.
    """
    if not inverse_strengths or not all(0 < c < math.inf for c in inverse_strengths):
        raise ValueError(
            f"inverse_strengths are {list(inverse_strengths)}: expected one or more finite numbers above 0"
        )
    if halvings < 0 or iterations < 1:
        raise ValueError(
            f"halvings is {halvings} and iterations {iterations}: expected 0 or more, and 1 or more"
        )
    data = read_for_probes(backbone, task, train, validation, Recipe(max_tokens=max_tokens), cache_features)
    if not data.train.states.isfinite().all():
        raise ValueError(
            f"{backbone.name} gives states that are not finite for some training rows: load it with dtype='float32'"
        )
    tried: dict[float, tuple[StrengthScore, dict[str, Any], dict[str, Tensor]]] = {}

    def score(c: float) -> float:
        if c not in tried:
            weight, bias, gradient = _optimum(data, c, iterations)
            # Judged as it is saved: in the precision of heads.
            tensors = {"weight": weight.to(data.head.weight.dtype), "bias": bias.to(data.head.bias.dtype)}
            outputs = data.held_out.all().to(tensors["weight"].dtype) @ tensors["weight"].T + tensors["bias"]
            metrics = data.judge(outputs)
            tried[c] = StrengthScore(c, float(metrics[task.main_metric]), gradient), metrics, tensors
        return tried[c][0].score

    for c in inverse_strengths:
        score(c)
    _halve(score, min(inverse_strengths, key=lambda c: (-score(c), c)), halvings)
    chosen = min(tried, key=lambda c: (-score(c), c))
    _, metrics, tensors = tried[chosen]
    settings = {"optimizer": "lbfgs", "c": chosen, "searched": len(tried), "iterations": iterations}
    tuned = data.tuned(tensors, max_tokens, settings, metrics)
    return ProbeSearch(tuned, tuple(found for found, _, _ in tried.values()))


def _halve(score: Callable[[float], float], peak: float, halvings: int) -> None:
    """Score both ends of a range about `peak`, keep the better half in log C, again and again."""
    low, high = math.log10(peak) - 1, math.log10(peak) + 1
    for _ in range(halvings):
        middle = (low + high) / 2
        if score(10**low) < score(10**high):
            low = middle
        else:
            high = middle


def _optimum(data: ProbeRows, c: float, iterations: int) -> tuple[Tensor, Tensor, float]:
    """W (K, d) and b (K,) in float64, and the largest number in the gradient there."""
    states, rows = data.train.all().double(), data.train.rows
    outputs = data.head.out_features
    weight = states.new_zeros(outputs, states.shape[1]).requires_grad_()
    bias = states.new_zeros(outputs).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = data.encoder.loss(states @ weight.T + bias, rows)  # (n, d) x (d, K) -> (n, K)
        # Divided by the number of rows, so that one tolerance serves all C.
        loss = (losses.sum() + weight.square().sum() / (2 * c)) / len(rows)
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    assert weight.grad is not None
    assert bias.grad is not None
    gradient = max(weight.grad.abs().max().item(), bias.grad.abs().max().item())
    return weight.detach(), bias.detach(), gradient
