"""Base-to-new: a prompt learns some classes of images by their texts and is judged on others, by their names alone.

Zhou, Yang, Loy, Liu, CVPR 2022 (arXiv 2203.05557), section 4.1: the first half of the classes is trained on; base and new
accuracy are each measured among the classes of that half, and H = 2 base new / (base + new).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass

from softprompt.backbones.base import Backbone
from softprompt.baselines import ZeroShot
from softprompt.data import Row, Rows, few_shot
from softprompt.fitting.one import fit
from softprompt.fitting.run_config import RunConfig
from softprompt.prompts import Method
from softprompt.protocols.base import STRICT, Experiment, Protocol, ProtocolResult, rows_of
from softprompt.protocols.splits import SEEDS
from softprompt.records import Record, once, rows_digest, setup_of
from softprompt.tasks import ImageTextClassification
from softprompt.tasks.base import Task
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
        """Mean accuracy on the new classes."""
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
    """The two averages that are called H, over (base, new) of several seeds or data sets.

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
    """The first half of the labels and the rest, as in CoOp's release: of an odd number the first half has one more.

    Raises ValueError for fewer than four: each half must be a choice.
    """
    if len(labels) < 4:
        raise ValueError(f"labels are {list(labels)}: four are needed, two to learn and two new ones")
    middle = -(-len(labels) // 2)
    return tuple(labels[:middle]), tuple(labels[middle:])


@dataclass(frozen=True)
class _Halves:
    """The classes in two halves, "base" and "new": of each its labels, the task among them, and its test rows.

    learned  the training rows of the base classes
    """

    labels: Mapping[str, tuple[str, ...]]
    tasks: Mapping[str, ImageTextClassification]
    tested: Mapping[str, list[Row]]
    learned: list[Row]


SCORES = ("base", "new", "harmonic_mean")
"""Metrics of a run; the last one decides."""


@settings_dataclass(frozen=True, config=STRICT)
class BaseToNewProtocol(Protocol):
    """Learn the first half of the classes and judge each half among its own labels, as `base_to_new_runs` does, for one seed.

    The score is H, the harmonic mean of both accuracies.
    """

    name: ClassVar[str] = "base-to-new"

    shots: int | None = Field(default=None, ge=1, strict=True)
    """Training rows of each base class, drawn by the recipe's seed; null: all."""

    def check(self, config: RunConfig) -> None:
        if config.task.labelling is None or not config.task.compares_texts:
            raise ValueError(
                f"{self.name} needs classes that are described by their names: task image-text-classification, "
                f"not {config.task.name}"
            )
        base_and_new(config.task.labelling.labels)
        if config.data.validation is not None:
            raise ValueError(
                f"{self.name} with data.validation: new classes have no validation rows, so nothing is chosen on any; "
                "leave data.validation and select out, and give the settings"
            )
        if config.data.test is None:
            raise ValueError(f"{self.name}: data.test is missing, on whose rows both halves are tested")

    def main_metric(self, task: Task) -> str:
        return "harmonic_mean"

    def measure(self, experiment: Experiment) -> ProtocolResult:
        if experiment.test is None:
            raise ValueError(f"{self.name}: test rows are missing, on which both halves are tested")
        task: Any = experiment.task  # base_to_new_runs refuses tasks that compare no texts
        kept: list[TunedPrompt] = []
        found = base_to_new_runs(
            experiment.backbone,
            task,
            experiment.method,
            experiment.train,
            experiment.test,
            shots=self.shots,
            seeds=(experiment.recipe.seed,),
            recipe=experiment.recipe,
            folder=experiment.folder,
            progress=experiment.progress,
            keep=lambda seed, tuned: kept.append(tuned),
        )
        [record] = found.records
        classes = {"base_labels": list(found.base_labels), "new_labels": list(found.new_labels)}
        return ProtocolResult(
            main_metric=self.main_metric(task),
            metrics={"test": {name: record[name] for name in SCORES} | classes},
            rows={"train": experiment.train, "test": experiment.test},
            history=kept[0].history,
            trained_parameters=record["trained_parameters"],
            learning_rate=record["learning_rate"],
            steps_made=experiment.recipe.steps if record["trained_parameters"] else 0,
            seconds=record["seconds"] or 0.0,
            test_seconds=record["test_seconds"],
            details=found,
        )


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
    folder  for checkpoints, with a folder for each seed, from which a killed run resumes
    progress  as in `fit`, of each run
    keep    function that is called with the seed and the prompt of each new run, for example to save it

    Raises ValueError for a task that does not compare images with texts, fewer than four labels, no seeds, and a half
    without rows, class-specific contexts, which cannot serve new classes; and what `fit` raises.
    """
    if not seeds:
        raise ValueError("no seeds were given")
    halves = _halved(task, method, rows_of(train, "train"), rows_of(test, "test"))
    recipe = recipe or Recipe()
    settings = {
        **setup_of(backbone, task, method, recipe),
        "train rows": rows_digest(halves.learned),
        "test rows": rows_digest([row for half in halves.tested.values() for row in half]),
    }
    plain: dict[str, float] = {}  # accuracy without a prompt by half, which no seed changes

    def work(seed: int) -> Record:
        tuned = fit(
            backbone,
            halves.tasks["base"],
            method,
            _drawn(halves.learned, task, shots, seed),
            recipe=replace(recipe, seed=seed),
            folder=None if folder is None else Path(folder) / str(seed),
            progress=progress,
        )
        if keep is not None:
            keep(seed, tuned)
        began = time.perf_counter()
        found = _accuracies(tuned, halves)
        if not plain:
            plain.update(_without_prompt(backbone, halves))
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

    records = [
        once(file, f"{method.name}/{shots or 'all'}/{seed}", settings, partial(work, seed)) for seed in seeds
    ]
    return BaseToNew(halves.labels["base"], halves.labels["new"], tuple(records))


def _halved(
    task: ImageTextClassification, method: Method, train: Sequence[Row], test: Sequence[Row]
) -> _Halves:
    if not task.compares_texts:
        raise ValueError(
            f"{task.name} answers only with the labels that it was trained for: base-to-new takes ImageTextClassification"
        )
    if method.class_specific:
        raise ValueError(
            f"{method.name} has class_specific=True, and a context of each base class serves no new ones: train with"
            " class_specific=False"
        )
    base, new = base_and_new(task.labels)
    labels = {"base": base, "new": new}
    learned = _of(train, task, base)
    tested = {half: _of(test, task, names) for half, names in labels.items()}
    if empty := [half for half, found in {"train": learned, **tested}.items() if not found]:
        raise ValueError(f"no {empty[0]} rows: base labels are {list(base)}, new ones {list(new)}")
    tasks = {half: task.with_labels(names) for half, names in labels.items()}
    return _Halves(labels, tasks, tested, learned)


def _drawn(rows: Sequence[Row], task: ImageTextClassification, shots: int | None, seed: int) -> Sequence[Row]:
    if shots is None:
        return rows
    numbered: list[dict[str, Any]] = [{"row": i, "label": task.read_label(row)} for i, row in enumerate(rows)]
    return [rows[one["row"]] for one in few_shot(numbered, shots, "label", seed)]


def _accuracies(tuned: TunedPrompt, halves: _Halves) -> dict[str, float]:
    """Accuracy of a prompt for base classes on each half, among the labels of that half."""
    return {
        "base": tuned.evaluate(halves.tested["base"])["accuracy"],
        "new": tuned.with_task(halves.tasks["new"]).evaluate(halves.tested["new"])["accuracy"],
    }


def _without_prompt(backbone: Backbone, halves: _Halves) -> dict[str, float]:
    """The accuracy of the frozen backbone on each half."""
    found = {}
    for half, rows in halves.tested.items():
        untrained = fit(backbone, halves.tasks[half], ZeroShot(), rows, progress=False)
        found[half] = untrained.evaluate(rows)["accuracy"]
    return found


def _of(rows: Sequence[Row], task: ImageTextClassification, labels: Sequence[str]) -> list[Row]:
    return [row for row in rows if task.read_label(row) in labels]
