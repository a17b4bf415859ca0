"""Base-to-new: a prompt learns some classes of images by their texts and is judged on others, by their names alone.

Zhou, Yang, Loy, Liu, CVPR 2022 (arXiv 2203.05557), section 4.1: the first half of the classes is trained on; base and new
accuracy are each measured among the classes of that half, and H = 2 base new / (base + new).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.baselines import ZeroShot
from softprompt.data import Row, Rows, few_shot
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols._records import Record, once, rows_digest, rows_of
from softprompt.protocols.few_shot import SEEDS
from softprompt.store.identity import identity_of, settings_of
from softprompt.tasks import ImageTextClassification
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt


@dataclass(frozen=True)
class BaseToNew:
    """Runs over seeds. Accuracies are shares.

    base_labels, new_labels  the classes
    records  per seed: method, seed, shots, base, new, harmonic_mean, zero_shot_base, zero_shot_new, zero_shot_harmonic_mean,
             learning_rate, trained_parameters, seconds (of training), test_seconds
    """

    base_labels: tuple[str, ...]
    new_labels: tuple[str, ...]
    records: tuple[Record, ...]

    @property
    def base(self) -> float:
        """Mean accuracy on the classes that were trained on."""
        return statistics.fmean(record["base"] for record in self.records)

    @property
    def new(self) -> float:
        """Mean accuracy on the others."""
        return statistics.fmean(record["new"] for record in self.records)

    @property
    def mean_of_harmonic_means(self) -> float:
        """Mean over the seeds of each run's H."""
        return statistics.fmean(record["harmonic_mean"] for record in self.records)

    @property
    def harmonic_mean_of_means(self) -> float:
        """H of the mean base and the mean new accuracy, which the papers print. Never below the mean of H."""
        return harmonic_mean(self.base, self.new)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 base new / (base + new), in their own unit; 0 where both are. Raises ValueError for a negative one."""
    if min(base, new) < 0:
        raise ValueError(f"accuracies are {base} and {new}: expected none below 0")
    return 2 * base * new / (base + new) if base + new else 0.0


def harmonic_means(pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Over (base, new) of several seeds or data sets the two averages that are called H.

    mean_of_harmonic_means  mean of each pair's H
    harmonic_mean_of_means  H of the mean base and the mean new accuracy: what the papers' "average" rows are
    Raises ValueError where there are none.
    """
    if not pairs:
        raise ValueError("there are no pairs of base and new accuracy to average")
    base, new = (statistics.fmean(side) for side in zip(*pairs, strict=True))
    return {
        "mean_of_harmonic_means": statistics.fmean(harmonic_mean(*pair) for pair in pairs),
        "harmonic_mean_of_means": harmonic_mean(base, new),
    }


def base_and_new(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The first half of the labels and the rest, the middle one of an odd number in the first, as in CoOp's release.

    Raises ValueError for fewer than four: each half must be a choice.
    """
    if len(labels) < 4:
        raise ValueError(f"labels are {list(labels)}: four are needed, two to learn and two others")
    middle = -(-len(labels) // 2)
    return tuple(labels[:middle]), tuple(labels[middle:])


def base_to_new_runs(
    backbone: Backbone,
    task: ImageTextClassification,
    method: Method,
    train: Rows,
    test: Rows,
    *,
    shots: int | None = 16,
    seeds: Sequence[int] = SEEDS,
    recipe: Recipe | None = None,
    file: str | Path | None = None,
    folder: str | Path | None = None,
    progress: bool | Progress = False,
    keep: Callable[[int, TunedPrompt], object] | None = None,
) -> BaseToNew:
    """Train on rows of the base classes per seed, and read the test rows of both halves once.

    task    with the labels of both halves, see `base_and_new`; base rows are judged among base labels, new among new
    train   a name with splits gives its "train" split, `test` its "test" split
    shots   rows per class, drawn with the run's seed; None: all
    recipe  how to train, its seed replaced; the last step is tested, since new classes have no validation rows
    file    JSON file of finished runs, which are not run again
    folder  checkpoints of the runs go there, a folder for each seed, so that a run that was killed goes on
    progress  as in `fit`, of each run
    keep    given the seed and the prompt of each run that is made, say to save it

    Raises ValueError for a task that does not compare images with texts, fewer than four labels, no seeds, and a half
    without rows, class-specific contexts, which cannot serve new classes; and what `fit` raises.
    """
    if not task.compares_texts:
        raise ValueError(
            f"{task.name} answers with the labels that it was trained for alone: base-to-new takes ImageTextClassification"
        )
    if method.class_specific:
        raise ValueError(
            f"{method.name} has class_specific=True, and a context of each base class serves no new ones: train with"
            " class_specific=False"
        )
    if not seeds:
        raise ValueError("no seeds were given")
    base, new = base_and_new(task.labels)
    tasks = {"base": task.with_labels(base), "new": task.with_labels(new)}
    halves = {"base": base, "new": new}
    rows, judged = rows_of(train, "train"), rows_of(test, "test")
    learned = _of(rows, task, base)
    tested = {half: _of(judged, task, labels) for half, labels in halves.items()}
    if empty := [half for half, found in {"train": learned, **tested}.items() if not found]:
        raise ValueError(f"no {empty[0]} rows: base labels are {list(base)}, new ones {list(new)}")
    recipe = recipe or Recipe()
    settings = {
        "backbone": settings_of(identity_of(backbone)),
        "task": {"name": task.name, **settings_of(task)},
        "method": {"name": method.name, **settings_of(method)},
        "recipe": settings_of(recipe),
        "train rows": rows_digest(learned),
        "test rows": rows_digest([row for half in tested.values() for row in half]),
    }
    plain: dict[str, float] = {}

    def work(seed: int) -> Record:
        numbered: list[dict[str, Any]] = [
            {"row": i, "label": task.read_label(row)} for i, row in enumerate(learned)
        ]
        drawn = numbered if shots is None else few_shot(numbered, shots, "label", seed)
        chosen = [learned[one["row"]] for one in drawn]
        tuned = fit(
            backbone,
            tasks["base"],
            method,
            chosen,
            recipe=replace(recipe, seed=seed),
            folder=None if folder is None else Path(folder) / str(seed),
            progress=progress,
        )
        if keep is not None:
            keep(seed, tuned)
        began = time.perf_counter()
        found = {
            "base": tuned.evaluate(tested["base"])["accuracy"],
            "new": tuned.with_task(tasks["new"]).evaluate(tested["new"])["accuracy"],
        }
        for half in halves:
            if half not in plain:
                untrained = fit(backbone, tasks[half], ZeroShot(), tested[half], progress=False)
                plain[half] = untrained.evaluate(tested[half])["accuracy"]
        how = {name: tuned.recipe.get(name) for name in ("learning_rate", "trained_parameters", "seconds")}
        return {
            "method": method.name,
            "seed": seed,
            "shots": shots,
            **found,
            "harmonic_mean": harmonic_mean(**found),
            **{f"zero_shot_{half}": accuracy for half, accuracy in plain.items()},
            "zero_shot_harmonic_mean": harmonic_mean(**plain),
            **how,
            "test_seconds": time.perf_counter() - began,
        }

    records = []
    for seed in seeds:

        def run(seed: int = seed) -> Record:
            return work(seed)

        key = f"{method.name}/{shots or 'all'}/{seed}"
        records.append(once(None if file is None else Path(file), key, settings, run))
    return BaseToNew(base, new, tuple(records))


def _of(rows: Sequence[Row], task: ImageTextClassification, labels: Sequence[str]) -> list[Row]:
    return [row for row in rows if task.read_label(row) in labels]
