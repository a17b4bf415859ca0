"""Learning from k rows per class: a protocol for one k and seed, and runs over several of both.

The setting of DePT's few-shot table (Shi, Lipani, ICLR 2024, arXiv 2309.05173, section 3.4): k = 4, 16, 32, with and
without a source task's prompt as the start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from softprompt.backbones.base import Backbone
from softprompt.data import Row, Rows
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols.base import STRICT, rows_of
from softprompt.protocols.fit_and_test import FitAndTest
from softprompt.protocols.splits import SEEDS, SHOTS, FewShotSplit, few_shot_splits
from softprompt.records import Record, folder_digest, once, rows_digest
from softprompt.store.identity import identity_of, named_settings, settings_of
from softprompt.tasks.base import Task
from softprompt.training.recipe import Recipe


@dataclass(frozen=True, config=STRICT)
class FewShotProtocol(FitAndTest):
    """Train on a few rows of each class, which the recipe's seed draws.

    Validation rows of their own are used where they are given; else as many others of each class are drawn.
    """

    name: ClassVar[str] = "few-shot"

    shots: int = Field(ge=1, strict=True)
    """k, training rows of each class."""

    def draws(self) -> int:
        return self.shots


def few_shot_runs(
    backbone: Backbone,
    task: Task,
    method: Method,
    train: Rows,
    test: Rows,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    source: str | Path | None = None,
    recipes: Sequence[Recipe] = (Recipe(),),
    validation: Rows | None = None,
    splits: str | Path | None = None,
    file: str | Path | None = None,
) -> list[Record]:
    """Train on k rows per class for every k and seed, choose on validation rows, read the test rows once per run.

    train       the rows from which splits are drawn; a name with splits gives its "train" split, `test` its "test" split
    source      folder of a prompt for the initial values: sets the method's init="prompt"
    recipes     how to train; of several the one with the best validation metric is tested. The run's seed replaces theirs
    validation  validation rows; None: k others per class, drawn with the training rows
    splits      JSON file of `few_shot_splits`
    file        JSON file of finished runs, which are not run again

    Returns a flat record per k and seed: method, shots, seed, source, metric (the main one), validation, test, majority
    (of the test rows), test_* (every number of the test metrics), recipe (which one), learning_rate,
    trained_parameters, best_step, seconds.
    Raises what `few_shot_splits` and `fit` do, and ValueError for a source with a method that has no init_prompt, or a file
    with the same runs under other settings.
    """
    if not recipes:
        raise ValueError("no recipe was given")
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    given = None if validation is None else rows_of(validation, "validation")
    method = method if source is None else started_from(method, source)
    settings: dict[str, Any] = {
        "backbone": settings_of(identity_of(backbone)),
        "task": named_settings(task),
        "method": named_settings(method),
        "recipes": [settings_of(recipe) for recipe in recipes],
        "test rows": rows_digest(test_rows),
        "validation rows": None if given is None else rows_digest(given),
        "source": None if source is None else folder_digest(Path(source)),
    }
    records = []
    for split in few_shot_splits(rows, task, shots, seeds, file=splits):
        chosen = [rows[i] for i in split.train]
        held_out = given if given is not None else [rows[i] for i in split.validation]

        def work(split: FewShotSplit = split, chosen: Any = chosen, held_out: Any = held_out) -> Record:
            found = _run(backbone, task, method, chosen, held_out, test_rows, recipes, split.seed)
            about = {"method": method.name, "shots": split.shots, "seed": split.seed}
            return about | {"source": None if source is None else str(source)} | found

        used = settings | {"rows": rows_digest([*chosen, *held_out])}
        key = "/".join(
            [method.name, "scratch" if source is None else str(source), str(split.shots), str(split.seed)]
        )
        records.append(once(file, key, used, work))
    return records


def started_from(method: Method, folder: str | Path) -> Method:
    """The same method, starting from a saved prompt. Raises ValueError if it cannot."""
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]  # a method is a dataclass
    if "init_prompt" not in known:
        raise ValueError(f"{method.name} cannot start from a prompt: it has no setting init_prompt")
    changes: dict[str, Any] = {"init": "prompt", "init_prompt": Path(folder)}
    if "init_text" in known:
        changes["init_text"] = None
    return type(method)(**settings_of(method) | changes)


def _run(
    backbone: Backbone,
    task: Task,
    method: Method,
    train: Sequence[Row],
    validation: Sequence[Row],
    test: Sequence[Row],
    recipes: Sequence[Recipe],
    seed: int,
) -> Record:
    """Fit with every recipe and test the one with the best validation metric, the first of equals."""
    tuned = [
        fit(backbone, task, method, train, validation, recipe=replace(recipe, seed=seed), progress=False)
        for recipe in recipes
    ]
    scores = [float(prompt.metrics["validation"][task.main_metric]) for prompt in tuned]
    best = max(range(len(tuned)), key=scores.__getitem__)
    metrics, how = tuned[best].evaluate(test), tuned[best].recipe
    return {
        "metric": task.main_metric,
        "validation": scores[best],
        "test": metrics[task.main_metric],
        "majority": metrics.get("majority_accuracy"),
        **{f"test_{name}": value for name, value in metrics.items() if isinstance(value, int | float)},
        "recipe": best,
        **{name: how.get(name) for name in ("learning_rate", "trained_parameters", "best_step", "seconds")},
    }
