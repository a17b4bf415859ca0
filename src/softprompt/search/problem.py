"""The input and the result of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from softprompt.backbones.base import Backbone
from softprompt.data import Row, batches
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.training.progress import Progress, Silent
from softprompt.training.recipe import Recipe


@dataclass(frozen=True)
class SearchProblem:
    """A task on a frozen backbone, for a method that searches for its prompt instead of training it.

    bind          (task, virtual tokens) -> the encoder of the task on this backbone
    encoder       the encoder of `task`, with slots for the P words of the prompt
    data          the training rows as they were given; `rows` are the same rows, encoded with their answers
    recipe        steps, rows in a batch, micro-batches, seed, and when to evaluate; its optimizer settings are not used
    evaluate      returns metrics of the prompt that is in the method's module; None: there are no validation rows
    """

    backbone: Backbone
    task: Task
    bind: Callable[[Task, int], TaskEncoder]
    encoder: TaskEncoder
    data: Sequence[Row]
    recipe: Recipe
    evaluate: Callable[[], Mapping[str, float]] | None = None
    progress: Progress = field(default_factory=Silent)

    @cached_property
    def rows(self) -> list[EncodedRow]:
        return [self.encoder.encode(row) for row in self.data]

    def batch(self, number: int, count: int = 1) -> list[EncodedRow]:
        """Return the rows of `count` batches, beginning with batch `number`, counted through all epochs; the seed decides."""
        size, found = self.recipe.batch_size, []
        per_epoch = math.ceil(len(self.rows) / size)
        for k in range(number, number + count):
            epoch, i = divmod(k, per_epoch)
            found += [self.rows[j] for j in batches(len(self.rows), size, self.recipe.seed, epoch)[i]]
        return found


@dataclass(frozen=True)
class SearchResult:
    """How a search went. The prompt itself is in the method's module.

    history  a record for each step, as plain JSON, with the text after the step
    metrics  metrics of the best prompt; empty if there are no validation rows
    facts    what the recipe of the tuned prompt receives: the text, the step that found it, and more
    """

    history: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    facts: Mapping[str, Any]


@runtime_checkable
class Searches(Protocol):
    """A method that searches for its prompt. There is nothing to inherit: one that has `search` is asked."""

    def search(self, problem: SearchProblem, module: Any) -> SearchResult | None:
        """Find the prompt and leave it in the module that the method built; None: there is nothing to do.

        Called only if neither the module, nor a head, nor the prepared backbone has a parameter that requires a gradient.
        """
        ...
