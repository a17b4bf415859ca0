"""Division of classes into tasks, and the training and test rows of each task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from softprompt.backbones.base import Backbone
from softprompt.data import Row
from softprompt.prompts import Method
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.records import rows_digest, setup_of
from softprompt.tasks import ImageClassification, SequenceClassification
from softprompt.training.recipe import Recipe

Labels = Sequence[str]
HeadTask = ImageClassification | SequenceClassification
Logits = Literal["present", "seen", "all"]


@dataclass(frozen=True)
class Stage:
    """Numbers of the training rows (rehearsed ones last) and of the task's test rows; the labels that compete."""

    train: tuple[int, ...]
    rehearsed: int
    test: tuple[int, ...]
    competing: tuple[str, ...]


def class_tasks(labels: Labels, tasks: int, seed: int | None = None) -> tuple[tuple[str, ...], ...]:
    """The labels divided into tasks, in their own order or, with a seed, in a drawn one. The first tasks may have one more.

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


def divided(task: HeadTask, tasks: int | Sequence[Labels], seed: int | None) -> tuple[tuple[str, ...], ...]:
    """The labels of each task: divided by `class_tasks`, or as given.

    Raises ValueError for a task without a head over all classes, and for groups that are no division of its labels.
    """
    if task.labelling is None or task.outputs is None:
        raise ValueError(
            f"{task.name} has no head over all classes: take ImageClassification or SequenceClassification"
        )
    if isinstance(tasks, int):
        return class_tasks(task.labels, tasks, seed)
    groups = tuple(tuple(str(label) for label in group) for group in tasks)
    if seed is not None:
        raise ValueError("order_seed draws an order, and tasks gives one already: give only one of the two")
    if sorted(label for group in groups for label in group) != sorted(task.labels):
        raise ValueError(
            f"tasks are {[list(group) for group in groups]}: each of the labels {list(task.labels)} must be in exactly one"
        )
    return groups


def stages_of(
    task: HeadTask,
    groups: Sequence[Labels],
    rows: Sequence[Row],
    test_rows: Sequence[Row],
    logits: Logits,
    rehearsal: Rehearsal | None,
) -> list[Stage]:
    """The training and test rows of each task, all known beforehand.

    Raises ValueError for a task without training or test rows, and one with a single class to tell from others.
    """
    labels, test_labels = ([task.read_label(row) for row in side] for side in (rows, test_rows))
    stages: list[Stage] = []
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
                f"in task {t} only {list(competing)} competes, so nothing would be learned: make "
                'larger tasks, or let more logits compete (logits="all")'
            )
        stages.append(Stage((*own, *kept), len(kept), tuple(tested), competing))
        so_far += own
    return stages


def tasks_setup(
    backbone: Backbone,
    task: HeadTask,
    method: Method,
    recipe: Recipe,
    groups: Sequence[Labels],
    rows: Sequence[Row],
    test_rows: Sequence[Row],
) -> dict[str, Any]:
    """The settings by which records of runs over tasks are known, as plain JSON."""
    return {
        **setup_of(backbone, task, method, recipe),
        "tasks": [list(group) for group in groups],
        "train rows": rows_digest(rows),
        "test rows": rows_digest(test_rows),
    }
