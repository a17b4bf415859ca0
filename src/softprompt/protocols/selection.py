"""Settings chosen on a few of the training rows, then training on all of them and one reading of the test.

The protocol of VTAB-1k (Zhai et al., arXiv 1910.04867) as VPT uses it (Jia et al., arXiv 2203.12119): of 1,000 training
rows 800 train and 200 choose among a grid, then all 1,000 train under several seeds. What is chosen by is what is tested:
the last step, never the best evaluation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.data import Row, Rows, subsample
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols.base import rows_of
from softprompt.records import Record, once, rows_digest
from softprompt.store.identity import identity_of, named_settings, settings_of
from softprompt.tasks.base import Task
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt

SEEDS = (42, 44, 82, 100, 800)
"""Seeds of the final runs, as in VPT's release."""


@dataclass(frozen=True)
class Candidate:
    """A way to tune that may be chosen."""

    method: Method
    recipe: Recipe


@dataclass(frozen=True)
class Selection:
    """The candidates, the chosen one, and its metrics on the test rows.

    metric   the task's main one
    choices  a flat record per candidate, in order: method, validation, learning_rate, weight_decay, trained_parameters,
             seconds
    chosen   number of the best one; of equal ones that with the smaller learning rate, then the earlier
    finals   a flat record per seed: seed, test, majority (of the test rows), test_* (every number of the test metrics),
             learning_rate, weight_decay, trained_parameters, seconds
    """

    metric: str
    choices: tuple[Record, ...]
    chosen: int
    finals: tuple[Record, ...]

    @property
    def mean(self) -> float:
        """Mean of the main test metric over the seeds."""
        return statistics.fmean(record["test"] for record in self.finals)

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds (n - 1); 0 for a single one."""
        tests = [record["test"] for record in self.finals]
        return statistics.stdev(tests) if len(tests) > 1 else 0.0


def candidates(
    methods: Sequence[Method], recipe: Recipe, grid: Mapping[str, Sequence[Any]] | None = None
) -> list[Candidate]:
    """Every method with every combination of the recipe's settings in `grid`.

    grid: as in {"learning_rate": (0.1, 0.01), "weight_decay": (0.01, 0.0)}. VPT's release takes ten rates and
    {0.01, 0.001, 0.0001, 0}, and goes through prompt lengths as through methods.
    Raises ValueError (pydantic's among them) for a setting that a recipe does not have or refuses.
    """
    grid = grid or {}
    if unknown := grid.keys() - {field.name for field in fields(recipe)}:
        raise ValueError(
            f"a recipe has no settings {sorted(unknown)}; settings of a method go into `methods`"
        )
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [Candidate(method, replace(recipe, **chosen)) for method in methods for chosen in combinations]


def select_and_test(
    backbone: Backbone,
    task: Task,
    tried: Sequence[Candidate],
    train: Rows,
    test: Rows,
    *,
    rows: int | None = 1000,
    held_out: float = 0.2,
    split_seed: int = 0,
    seeds: Sequence[int] = SEEDS,
    file: str | Path | None = None,
    progress: bool | Progress = False,
) -> Selection:
    """Choose among candidates on held-out training rows, train the chosen one on all rows per seed, test each once.

    tried       see `candidates`
    train       a name with splits gives its "train" split, `test` its "test" split
    rows        training rows in all, drawn with `split_seed` where there are more; None: all
    held_out    share of them that is held out to choose the settings
    seeds       of the final runs; a candidate is tried with the seed of its recipe
    file        JSON file of finished runs, which are not run again; a larger grid adds to it

    The final runs make as many optimizer steps as the candidates did, over more rows; nothing but them reads test rows.
    Raises what `fit` does, and ValueError where there are no candidates, no seeds, or no rows on either side of the split.
    """
    if not tried or not seeds:
        raise ValueError(f"{len(tried)} candidates and {len(seeds)} seeds were given: one of each at least")
    data, test_rows = rows_of(train, "train"), rows_of(test, "test")
    data = data if rows is None else subsample(data, rows, split_seed)
    fitted, chosen_by = divided(data, held_out, split_seed)
    common = {
        "backbone": settings_of(identity_of(backbone)),
        "task": named_settings(task),
    }

    def run(stage: str, candidate: Candidate, train: Sequence[Row], judged: Sequence[Row]) -> Record:
        method, recipe = candidate.method, candidate.recipe
        how = {"method": named_settings(method), "recipe": settings_of(recipe)}
        used = common | how | {"train rows": rows_digest(train), "judged rows": rows_digest(judged)}

        def work() -> Record:
            tuned = fit(backbone, task, method, train, recipe=recipe, progress=progress)
            return _record(stage, tuned, tuned.evaluate(judged))

        # The number of a candidate says nothing once the grid has grown.
        digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
        return once(file, f"{stage}/{method.name}/{digest[:16]}", used, work)

    choices = [run("validation", candidate, fitted, chosen_by) for candidate in tried]
    best = max(range(len(tried)), key=lambda i: (choices[i]["validation"], -choices[i]["learning_rate"], -i))
    finals = []
    for seed in seeds:
        final = replace(tried[best], recipe=replace(tried[best].recipe, seed=seed))
        finals.append({"seed": seed} | run("test", final, data, test_rows))
    return Selection(task.main_metric, tuple(choices), best, tuple(finals))


def divided(data: Sequence[Row], held_out: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Training rows and the share `held_out` of all rows, drawn without regard to labels, each in order.

    Raises ValueError if either side would be empty.
    """
    count = round(held_out * len(data))
    if not 0 < count < len(data):
        raise ValueError(
            f"held_out={held_out} of {len(data)} rows: expected a share that leaves rows on both sides"
        )
    numbered = [{"row": i} for i in range(len(data))]
    drawn = {row["row"] for row in subsample(numbered, count, seed)}
    return [r for i, r in enumerate(data) if i not in drawn], [data[i] for i in sorted(drawn)]


def _record(stage: str, tuned: TunedPrompt, metrics: Mapping[str, Any]) -> Record:
    score = metrics[tuned.task.main_metric]
    found: Record = {"method": tuned.method.name, stage: score}
    if stage == "test":
        found["majority"] = metrics.get("majority_accuracy")
        found |= {f"test_{name}": v for name, v in metrics.items() if isinstance(v, int | float)}
    how = ("learning_rate", "weight_decay", "trained_parameters", "seconds")
    return found | {name: tuned.recipe.get(name) for name in how}
