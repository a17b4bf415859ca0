"""Training on all classes at once: the upper bound of class-incremental learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from softprompt.backbones.base import Backbone
from softprompt.data import Rows
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols.base import rows_of
from softprompt.protocols.right_answers import right_answers
from softprompt.protocols.task_division import HeadTask, Labels, divided, stages_of, tasks_setup
from softprompt.records import Record, once
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe


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
    """The result of training on all classes at once: the upper bound of `class_incremental_run`.

    tasks   of which the accuracy is taken, as there. A fair recipe has the steps of all tasks together
    file    JSON file of finished runs, which are not run again

    Returns a record: accuracy (of each task), final_average (their mean), rows (test rows of each task), seconds,
    trained_parameters.
    """
    recipe = recipe or Recipe()
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    groups = divided(task, tasks, order_seed)
    stages = stages_of(task, groups, rows, test_rows, "all", None)
    settings = tasks_setup(backbone, task, method, recipe, groups, rows, test_rows)

    def work() -> Record:
        plain = replace(task, loss_labels=None)
        tuned = fit(backbone, plain, method, rows, recipe=recipe, progress=progress)
        tests = [[test_rows[i] for i in stage.test] for stage in stages]
        correct = right_answers(tuned, backbone, tests=tests, allowed=None, cache=None)
        accuracy = [right / len(stage.test) for right, stage in zip(correct, stages, strict=True)]
        return {
            "accuracy": accuracy,
            "final_average": sum(accuracy) / len(accuracy),
            "rows": [len(stage.test) for stage in stages],
            "seconds": tuned.recipe.get("seconds"),
            "trained_parameters": tuned.recipe["trained_parameters"],
        }

    return once(file, f"joint/{method.name}/{recipe.seed}", settings, work)
