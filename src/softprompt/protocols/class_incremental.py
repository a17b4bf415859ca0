"""Class-incremental learning: the classes come in tasks, one after the other, and no task's rows come back.

The setting of L2P (Wang et al., CVPR 2022, arXiv 2112.08654): one head over all classes, and nobody says at test time
which task an image belongs to. Any method will do: its state goes on from task to task, the optimizer begins anew.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from softprompt.backbones.base import Backbone
from softprompt.data import Row, Rows
from softprompt.errors import SoftpromptWarning
from softprompt.features.cache import FeatureCache
from softprompt.features.frozen_rows import encoded_rows
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols import accuracy_matrix
from softprompt.protocols._records import Record, once, rows_digest, rows_of
from softprompt.protocols._stages import read_stages, write_stage
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.store.identity import identity_of, settings_of
from softprompt.tasks import ImageClassification, SequenceClassification
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt, load

Labels = Sequence[str]
HeadTask = ImageClassification | SequenceClassification
Logits = Literal["present", "seen", "all"]
Answers = Literal["all", "seen"]


@dataclass(frozen=True, eq=False)
class ClassIncremental:
    """How the classes were learned, task after task.

    tasks     the labels of each task, in the order of learning
    accuracy  row t: the accuracy on the test rows of each of the tasks 0 to t, after task t
    rows      test rows of each task
    stages    a record per task: task, rows, rehearsed (how many of these), correct (of each task so far), seconds (of
              training), test_seconds, trained_parameters, history (a record per optimizer step); of a pool of prompts also
              chosen (how often each was, while the task was learned)
    prompt    after the last task
    """

    tasks: tuple[tuple[str, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    rows: tuple[int, ...]
    stages: tuple[Record, ...]
    prompt: TunedPrompt

    @property
    def metrics(self) -> dict[str, float]:
        """final_average, incremental_average, learning_accuracy, forgetting, backward_transfer: see `accuracy_matrix`.

        In a stage of the incremental average each test row counts alike. The last two need more than one task.
        """
        found = {
            "final_average": accuracy_matrix.final_average(self.accuracy),
            "incremental_average": accuracy_matrix.incremental_average(self.accuracy, self.rows),
            "learning_accuracy": accuracy_matrix.learning_accuracy(self.accuracy),
        }
        if len(self.tasks) > 1:
            found["forgetting"] = accuracy_matrix.forgetting(self.accuracy)
            found["backward_transfer"] = accuracy_matrix.backward_transfer(self.accuracy)
        return found


@dataclass(frozen=True)
class _Stage:
    """Row numbers to train on, those rehearsed last, and of the own task's test rows; the labels that compete."""

    train: tuple[int, ...]
    rehearsed: int
    test: tuple[int, ...]
    competing: tuple[str, ...]


def class_tasks(labels: Labels, tasks: int, seed: int | None = None) -> tuple[tuple[str, ...], ...]:
    """The labels in so many tasks: in their own order, or with a seed in a drawn one. The first tasks may have one more.

    Raises ValueError for fewer than one task, or more than labels.
    """
    if not 1 <= tasks <= len(labels):
        raise ValueError(f"{len(labels)} labels cannot be divided into {tasks} tasks")
    order = list(labels)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        order = [order[i] for i in torch.randperm(len(order), generator=generator).tolist()]
    size, more = divmod(len(order), tasks)
    starts = [t * size + min(t, more) for t in range(tasks + 1)]
    return tuple(tuple(order[starts[t] : starts[t + 1]]) for t in range(tasks))


def class_incremental_run(
    backbone: Backbone,
    task: HeadTask,
    method: Method,
    train: Rows,
    test: Rows,
    *,
    tasks: int | Sequence[Labels] = 5,
    order_seed: int | None = None,
    recipe: Recipe | None = None,
    logits: Logits = "present",
    answers: Answers = "all",
    rehearsal: Rehearsal | None = None,
    folder: str | Path | None = None,
    cache_features: bool | str | Path | FeatureCache = False,
    progress: bool | Progress = False,
) -> ClassIncremental:
    """Learn the task's classes in tasks, and after each evaluate the test rows of every task so far.

    task        its labels are all classes, whatever comes when: the head knows them from the start
    train       a name with splits gives its "train" split, `test` its "test" split
    tasks       how many, divided by `class_tasks` with `order_seed`; or the labels of each
    recipe      of each task. There is no validation: the last step stands, and settings are chosen beforehand
    logits      that compete in training. present: of classes with rows in this task, those rehearsed included, which
                without rehearsal is what L2P's release does; seen: of all classes so far; all
    answers     that are allowed in a test: any class, as in L2P's release, or those seen so far. Which task a row is of is
                never known. In the end both are the same
    rehearsal   rows of earlier tasks that are trained on with those of a task; None: none are
    folder      where the state is kept after each task: a study that was killed goes on with the task it was at, and ends
                with the same bits; the prompt is saved there in the end
    cache_features  as in `fit`; of test rows too

    Sequential fine-tuning is this with FullTuning, and `joint_training` the bound from above.

    Raises what `fit` does, and ValueError for tasks that are no division of the labels, that have no rows to train on or to
    test, or just one class to tell apart, and for a folder with another study.
    """
    recipe = recipe or Recipe()
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    groups = _divided(task, tasks, order_seed)
    stages = _planned(task, groups, rows, test_rows, logits, rehearsal)
    settings = _settings(backbone, task, method, recipe, groups, rows, test_rows) | {
        "logits": logits,
        "answers": answers,
        "rehearsal": None if rehearsal is None else settings_of(rehearsal),
    }
    place = None if folder is None else Path(folder)
    records, state = ([], None) if place is None else read_stages(place, settings)
    prompt, cache = None, FeatureCache.of(cache_features)
    for t in range(len(records), len(stages)):
        stage, seen = stages[t], [label for group in groups[: t + 1] for label in group]
        competing = None if logits == "all" else stage.competing
        with warnings.catch_warnings():
            # Of most classes there are no rows yet, or any more.
            warnings.filterwarnings("ignore", "no training row has the labels", SoftpromptWarning)
            tuned = fit(
                backbone,
                replace(task, loss_labels=competing),
                method.for_task(t),
                [rows[i] for i in stage.train],
                recipe=recipe,
                start=state,
                cache_features=cache or False,
                progress=progress,
            )
        prompt, state = replace(tuned, task=replace(task, loss_labels=None)), tuned.state()
        tests = [[test_rows[i] for i in earlier.test] for earlier in stages[: t + 1]]
        began = time.perf_counter()
        correct = _correct(prompt, backbone, task, tests, None if answers == "all" else seen, cache)
        records.append(
            {
                "task": t,
                "rows": len(stage.train),
                "rehearsed": stage.rehearsed,
                "correct": correct,
                "seconds": tuned.recipe.get("seconds"),
                "test_seconds": time.perf_counter() - began,
                "trained_parameters": tuned.recipe["trained_parameters"],
                "history": list(tuned.history),
            }
            | {name: tally.tolist() for name, tally in tuned.module.tallies().items()}
        )
        if place is not None:
            if t == len(stages) - 1:
                prompt.save(place / "prompt", overwrite=True)
            write_stage(place, settings, records, state)
    if prompt is None:
        assert place is not None
        prompt = load(place / "prompt", backbone)
    counts = tuple(len(stage.test) for stage in stages)
    accuracy = [[c / n for c, n in zip(r["correct"], counts, strict=False)] for r in records]
    return ClassIncremental(groups, tuple(map(tuple, accuracy)), counts, tuple(records), prompt)


def joint_training(
    backbone: Backbone,
    task: HeadTask,
    method: Method,
    train: Rows,
    test: Rows,
    *,
    tasks: int | Sequence[Labels] = 5,
    order_seed: int | None = None,
    recipe: Recipe | None = None,
    file: str | Path | None = None,
    progress: bool | Progress = False,
) -> Record:
    """What a method reaches that sees all classes at once: the bound from above of `class_incremental_run`.

    tasks   of which the accuracy is taken, as there. A fair recipe has the steps of all tasks together
    file    JSON file of finished runs, which are not run again

    Returns a record: accuracy (of each task), final_average (their mean), rows (test rows of each task), seconds,
    trained_parameters.
    """
    recipe = recipe or Recipe()
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    groups = _divided(task, tasks, order_seed)
    stages = _planned(task, groups, rows, test_rows, "all", None)
    settings = _settings(backbone, task, method, recipe, groups, rows, test_rows)

    def work() -> Record:
        plain = replace(task, loss_labels=None)
        tuned = fit(backbone, plain, method, rows, recipe=recipe, progress=progress)
        tests = [[test_rows[i] for i in stage.test] for stage in stages]
        correct = _correct(tuned, backbone, task, tests, None, None)
        accuracy = [right / len(stage.test) for right, stage in zip(correct, stages, strict=True)]
        return {
            "accuracy": accuracy,
            "final_average": sum(accuracy) / len(accuracy),
            "rows": [len(stage.test) for stage in stages],
            "seconds": tuned.recipe.get("seconds"),
            "trained_parameters": tuned.recipe["trained_parameters"],
        }

    return once(None if file is None else Path(file), f"joint/{method.name}/{recipe.seed}", settings, work)


def _correct(
    tuned: TunedPrompt,
    backbone: Backbone,
    task: HeadTask,
    tests: Sequence[Sequence[Row]],
    allowed: Labels | None,
    cache: FeatureCache | None,
) -> list[int]:
    """Right answers to the rows of each task; allowed: labels among which the likeliest is the answer."""
    rows = [row for group in tests for row in group]
    if cache is None:
        found = tuned.predict(rows)
    else:
        encoded = encoded_rows(tuned, backbone, rows, cache, answer=False)
        found = tuned.encoder.predict(tuned.model, encoded)
    labels = [p.label if allowed is None else max(allowed, key=p.probabilities.__getitem__) for p in found]
    right = iter([label == task.read_label(row) for label, row in zip(labels, rows, strict=True)])
    return [sum(next(right) for _ in group) for group in tests]


def _divided(task: HeadTask, tasks: int | Sequence[Labels], seed: int | None) -> tuple[tuple[str, ...], ...]:
    if task.labelling is None or task.outputs is None:
        raise ValueError(
            f"{task.name} has no head over all classes: take ImageClassification or SequenceClassification"
        )
    if isinstance(tasks, int):
        return class_tasks(task.labels, tasks, seed)
    groups = tuple(tuple(str(label) for label in group) for group in tasks)
    if seed is not None:
        raise ValueError("order_seed draws an order, and tasks says it already: give one of the two")
    if sorted(label for group in groups for label in group) != sorted(task.labels):
        raise ValueError(
            f"tasks are {[list(group) for group in groups]}: each of the labels {list(task.labels)} must be in exactly one"
        )
    return groups


def _planned(
    task: HeadTask,
    groups: Sequence[Labels],
    rows: Sequence[Row],
    test_rows: Sequence[Row],
    logits: Logits,
    rehearsal: Rehearsal | None,
) -> list[_Stage]:
    """What each task trains on and is tested with, all of it known beforehand."""
    labels, test_labels = ([task.read_label(row) for row in side] for side in (rows, test_rows))
    stages: list[_Stage] = []
    so_far: list[int] = []
    for t, group in enumerate(groups):
        own = [i for i, label in enumerate(labels) if label in group]
        kept = [] if rehearsal is None else rehearsal.rows(so_far, labels)
        tested = [i for i, label in enumerate(test_labels) if label in group]
        if not own or not tested:
            raise ValueError(
                f"task {t} ({list(group)}) has {len(own)} training rows and {len(tested)} test rows: it needs both"
            )
        seen = {label for earlier in groups[: t + 1] for label in earlier}
        present = {labels[i] for i in (*own, *kept)}
        wanted = {"present": present, "seen": seen, "all": set(task.labels)}[logits]
        competing = tuple(label for label in task.labels if label in wanted)
        if len(competing) < 2:
            raise ValueError(
                f"in task {t} only {list(competing)} is there to be told from others, and nothing would be learned: make "
                'larger tasks, or let more logits compete (logits="all")'
            )
        stages.append(_Stage((*own, *kept), len(kept), tuple(tested), competing))
        so_far += own
    return stages


def _settings(
    backbone: Backbone,
    task: HeadTask,
    method: Method,
    recipe: Recipe,
    groups: Sequence[Labels],
    rows: Sequence[Row],
    test_rows: Sequence[Row],
) -> dict[str, Any]:
    return {
        "backbone": settings_of(identity_of(backbone)),
        "task": {"name": task.name, **settings_of(task)},
        "method": {"name": method.name, **settings_of(method)},
        "recipe": settings_of(recipe),
        "tasks": [list(group) for group in groups],
        "train rows": rows_digest(rows),
        "test rows": rows_digest(test_rows),
    }
