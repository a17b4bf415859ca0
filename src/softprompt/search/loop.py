"""The loop of every search: it makes steps, evaluates, and keeps the best prompt so far."""

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

_JUDGED_ROWS = 256  # training rows that prompts are compared on if there are no validation rows


@dataclass(frozen=True)
class Step:
    """The result of a step.

    ids            (P,) the words that the next step begins with; the same as before if nothing better was found
    loss           the mean loss over the rows that the step scored last
    gradient_norm  the norm of the loss's gradient in the words' embeddings
    tokens         the number of tokens that went through the model
    learning_rate  the learning rate of the step, if it has one
    """

    ids: Tensor
    loss: float
    gradient_norm: float
    tokens: int
    learning_rate: float = 0.0


class Stepper(Protocol):
    def __call__(self, number: int, ids: Tensor, generator: torch.Generator) -> Step:
        """Make one step from the words `ids`. number: counted from 0; generator: seeded for this step alone."""
        ...


def search(
    problem: SearchProblem, start: Tensor, step: Stepper, show: Callable[[Tensor], None]
) -> SearchResult:
    """Make the steps of the recipe, leave the best prompt in the method's module, and return how the search went.

    The start and the prompt after every `evaluate_every` steps are judged by the main metric on the validation rows, or, if
    there are none, by their loss on 256 fixed training rows. The result is therefore never worse there than the start.
    `patience` ends a search early. The rows and the randomness of a step depend on the seed and the step alone.

    Arguments:
        problem: the task, the backbone, the rows and the recipe
        start: (P,) the words that the search begins with
        step: makes one step
        show: puts words into the method's module, which `evaluate` of the problem reads
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
    """Return a function: words -> (score, where higher is better; metrics). It judges each prompt once."""
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
