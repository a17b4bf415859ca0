"""The loop of every search: steps, evaluations, the best prompt so far."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from softprompt.search.problem import SearchProblem, SearchResult
from softprompt.search.scoring import candidate_losses
from softprompt.search.written import decode
from softprompt.training.progress import Record

log = logging.getLogger(__name__)

_JUDGED_ROWS = 256  # training rows that prompts are compared on where there are no validation rows


@dataclass(frozen=True)
class Step:
    """What a step found.

    ids            (P,) the words to go on with, the same as before where nothing better was found
    loss           mean over the rows that the step saw last
    gradient_norm  of the loss in the words' embeddings
    tokens         that went through the model
    learning_rate  of a step that has one
    """

    ids: Tensor
    loss: float
    gradient_norm: float
    tokens: int
    learning_rate: float = 0.0


class Stepper(Protocol):
    def __call__(self, number: int, ids: Tensor, generator: torch.Generator) -> Step:
        """One step from the words `ids`. number: from 0; generator: seeded for this step alone."""
        ...


def search(
    problem: SearchProblem, start: Tensor, step: Stepper, show: Callable[[Tensor], None]
) -> SearchResult:
    """Make the recipe's steps from the words `start` (P,) and show the best prompt that was seen.

    show: puts words into the method's module, which the problem's `evaluate` looks at.

    The prompts after each `evaluate_every` steps, and the start, are judged by the main metric on the validation rows,
    without these by their loss on 256 fixed training rows. So the result is never worse there than the start.
    `patience` ends a search early. The rows and the randomness of a step depend on the seed and the step alone.
    """
    recipe, tokenizer = problem.recipe, problem.backbone.tokenizer
    judge = _judge(problem, show)
    ids = best = start
    best_score, best_metrics, best_step, stale = *judge(ids), 0, 0
    records: list[Record] = []
    texts: list[str] = []
    problem.progress.begin(recipe.steps, 0)
    try:
        for number in range(recipe.steps):
            started = time.perf_counter()
            generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
            found = step(number, ids, generator)
            ids = found.ids
            record = Record(
                step=number + 1,
                loss=found.loss,
                lr=found.learning_rate,
                gradient_norm=found.gradient_norm,
                tokens=found.tokens,
                seconds=time.perf_counter() - started,
            )
            problem.progress.update(record)
            due = number + 1 == recipe.steps or (number + 1) % recipe.evaluation_interval == 0
            if due:
                score, metrics = judge(ids)
                record = Record(**{**vars(record), "metrics": metrics})
                is_best = score > best_score
                stale = 0 if is_best else stale + 1
                if is_best:
                    best, best_score, best_metrics, best_step = ids, score, metrics, number + 1
                    log.info("step %d: %r", number + 1, decode(tokenizer, best.tolist()))
                problem.progress.report(record, is_best=is_best)
            records.append(record)
            texts.append(decode(tokenizer, ids.tolist()))
            if recipe.patience is not None and stale >= recipe.patience:
                break
    finally:
        problem.progress.end()
    show(best)
    return SearchResult(
        [record.as_dict() | {"text": text} for record, text in zip(records, texts, strict=True)],
        best_metrics if problem.evaluate is not None else {},
        {
            "text": decode(tokenizer, best.tolist()),
            "steps_made": len(records),
            "best_step": best_step,
            "seconds": sum(record.seconds for record in records),
        },
    )


def _judge(
    problem: SearchProblem, show: Callable[[Tensor], None]
) -> Callable[[Tensor], tuple[float, Mapping[str, float]]]:
    """words -> (score, higher is better; metrics), each prompt judged once."""
    seen: dict[tuple[int, ...], tuple[float, Mapping[str, float]]] = {}
    size = problem.recipe.batch_size
    fixed = problem.rows[:_JUDGED_ROWS]

    def judged(ids: Tensor) -> tuple[float, Mapping[str, float]]:
        if problem.evaluate is not None:
            show(ids)
            metrics = problem.evaluate()
            return metrics[problem.task.main_metric], metrics
        total = 0.0
        for start in range(0, len(fixed), size):
            rows = fixed[start : start + size]
            total += candidate_losses(problem.backbone, problem.encoder, rows, ids[None]).item() * len(rows)
        return -total / len(fixed), {"loss": total / len(fixed)}

    def judge(ids: Tensor) -> tuple[float, Mapping[str, float]]:
        key = tuple(ids.tolist())
        if key not in seen:
            seen[key] = judged(ids)
        return seen[key]

    return judge
