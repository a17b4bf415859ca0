"""Class-incremental learning: the classes come in tasks, one after the other, and no task's rows come back.

The setting of L2P (Wang et al., CVPR 2022, arXiv 2112.08654): one head over all classes, and nobody says at test time
which task an image belongs to. Any method will do: its state goes on from task to task, the optimizer begins anew.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass as settings_dataclass
from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.data import Row, Rows
from softprompt.errors import SoftpromptWarning
from softprompt.features.cache import FeatureCache
from softprompt.fitting.one import fit
from softprompt.fitting.run_config import RunConfig
from softprompt.prompts import Method
from softprompt.prompts.hooks import method_for_task, tallies_of
from softprompt.protocols import accuracy_matrix
from softprompt.protocols.base import STRICT, Experiment, Protocol, ProtocolResult, rows_of
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.protocols.right_answers import right_answers
from softprompt.protocols.task_division import (
    HeadTask,
    Labels,
    Logits,
    Stage,
    divided,
    stages_of,
    tasks_setup,
)
from softprompt.records import Record
from softprompt.records.stages import read_stages, write_stage
from softprompt.store.identity import settings_of
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt, load

Answers = Literal["all", "seen"]


@dataclass(frozen=True, eq=False)
class ClassIncremental:
    """Result of a class-incremental run.

    tasks     the labels of each task, in the order of learning
    accuracy  row t: the accuracy on the test rows of each of the tasks 0 to t, after task t
    rows      test rows of each task
    stages    a record per task: task, rows, rehearsed (how many of these), correct (of each task so far), seconds (of
              training), test_seconds, trained_parameters, history (a record per optimizer step); of a pool of prompts also
              chosen (how often each was, while the task was learned)
    prompt    after the last task
    resumed   number of tasks that an earlier process had learned, which were read from the folder
    """

    tasks: tuple[tuple[str, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    rows: tuple[int, ...]
    stages: tuple[Record, ...]
    prompt: TunedPrompt
    resumed: int = 0

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


Order = Literal["seed", "natural"]


@settings_dataclass(frozen=True, config=STRICT)
class ClassIncrementalProtocol(Protocol):
    """Learn the classes in tasks, as `class_incremental_run` does, and test after each task.

    The score is the final average accuracy. Experiments without test rows, by which settings are chosen, are tested on
    validation rows.
    """

    name: ClassVar[str] = "class-incremental"

    tasks: int = Field(ge=1, strict=True)
    """Number of tasks into which the classes are divided; 1: all at once."""
    logits: Logits = "present"
    """Which outputs compete in training: those of classes with rows in the task, of all classes so far, or all."""
    order: Order = "seed"
    """Order of the classes: drawn by the recipe's seed, or as in the task's labels."""
    answers: Answers = "all"
    """Which classes a test allows: all, or those seen so far."""
    rehearsal: Rehearsal | None = None
    """Rows of earlier tasks to train on again; none by default."""

    def check(self, config: RunConfig) -> None:
        if config.task.labelling is None or config.task.outputs is None:
            raise ValueError(
                f"{self.name} needs a head over all classes: task image-classification or sequence-classification, "
                f"not {config.task.name}"
            )

    def measure(self, experiment: Experiment) -> ProtocolResult:
        part = "validation" if experiment.test is None else "test"
        tested = experiment.validation if experiment.test is None else experiment.test
        if tested is None:
            raise ValueError(f"{self.name}: there are neither test nor validation rows to test each task on")
        task: Any = experiment.task  # class_incremental_run refuses what has no head over all classes
        steps = experiment.recipe.steps
        found = class_incremental_run(
            experiment.backbone,
            task,
            experiment.method,
            experiment.train,
            tested,
            tasks=self.tasks,
            order_seed=experiment.recipe.seed if self.order == "seed" else None,
            recipe=experiment.recipe,
            logits=self.logits,
            answers=self.answers,
            rehearsal=self.rehearsal,
            folder=experiment.folder,
            cache_features=experiment.cache or False,
            progress=experiment.progress,
        )
        return ProtocolResult(
            main_metric=task.main_metric,
            # L2P's average accuracy, which is the accuracy over all classes where tasks are of one size.
            metrics={part: {task.main_metric: found.metrics["final_average"], **_about(found, task, tested)}},
            rows={"train": experiment.train, part: tested},
            prompt=found.prompt,
            history=[
                {**record, "task": t, "step": t * steps + record["step"]}
                for t, stage in enumerate(found.stages)
                for record in stage["history"]
            ],
            trained_parameters=found.stages[-1]["trained_parameters"],
            learning_rate=found.prompt.recipe.get("learning_rate"),
            steps_made=steps * len(found.tasks),
            seconds=sum(stage["seconds"] or 0.0 for stage in found.stages),
            test_seconds=sum(stage["test_seconds"] for stage in found.stages[found.resumed :]),
            details=found,
        )


def _about(found: ClassIncremental, task: HeadTask, tested: Sequence[Row]) -> dict[str, Any]:
    """The metrics of a run, and those to compare them with."""
    commonest = max(Counter(map(task.read_label, tested)).values())
    about = {
        **found.metrics,
        "accuracy_matrix": found.accuracy,
        "tasks": found.tasks,
        "majority_accuracy": commonest / len(tested),
    }
    if chosen := [stage["chosen"] for stage in found.stages if "chosen" in stage]:
        about["chosen"] = chosen  # how often each prompt of the pool was, by task
    return about


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

    task        its labels are all classes: the head has an output for each from the start
    train       a name with splits gives its "train" split, `test` its "test" split
    tasks       how many, divided by `class_tasks` with `order_seed`; or the labels of each
    recipe      of each task. There is no validation: the last step counts, so choose settings beforehand
    logits      that compete in training. present: of classes with rows in this task, those rehearsed included, which
                without rehearsal is what L2P's release does; seen: of all classes so far; all
    answers     that are allowed in a test: any class, as in L2P's release, or those seen so far. Which task a row is of is
                never known. In the end both are the same
    rehearsal   rows of earlier tasks to train on with those of a task; None: none
    folder      for the state after each task and the final prompt: a killed run resumes with the task that it had reached, and
                its result is bit-identical
    cache_features  as in `fit`; of test rows too

    Sequential fine-tuning is this with FullTuning, and `joint_training` the bound from above.

    Raises what `fit` does, and ValueError for tasks that are no division of the labels, that have no rows to train on or to
    test, or just one class to tell apart, and for a folder with another study.
    """
    recipe = recipe or Recipe()
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    groups = divided(task, tasks, order_seed)
    stages = stages_of(task, groups, rows, test_rows, logits, rehearsal)
    settings = tasks_setup(backbone, task, method, recipe, groups, rows, test_rows) | {
        "logits": logits,
        "answers": answers,
        "rehearsal": None if rehearsal is None else settings_of(rehearsal),
    }
    place = None if folder is None else Path(folder)
    records, state = ([], None) if place is None else read_stages(place, settings)
    resumed, prompt, cache = len(records), None, FeatureCache.of(cache_features)
    for t in range(resumed, len(stages)):
        tuned = _learned(
            backbone=backbone,
            task=replace(task, loss_labels=None if logits == "all" else stages[t].competing),
            method=method_for_task(method, t),
            rows=[rows[i] for i in stages[t].train],
            recipe=recipe,
            start=state,
            cache=cache,
            progress=progress,
        )
        prompt, state = replace(tuned, task=replace(task, loss_labels=None)), tuned.state()
        began = time.perf_counter()
        correct = right_answers(
            prompt,
            backbone,
            tests=[[test_rows[i] for i in earlier.test] for earlier in stages[: t + 1]],
            allowed=None if answers == "all" else [label for group in groups[: t + 1] for label in group],
            cache=cache,
        )
        records.append(_record(t, stages[t], tuned, correct, time.perf_counter() - began))
        if place is not None:
            if t == len(stages) - 1:
                prompt.save(place / "prompt", overwrite=True)
            write_stage(place, settings, records, state)
    if prompt is None:
        assert place is not None
        prompt = load(place / "prompt", backbone)
    return _result(groups, stages, records, prompt, resumed)


def _result(
    groups: tuple[tuple[str, ...], ...],
    stages: Sequence[Stage],
    records: Sequence[Record],
    prompt: TunedPrompt,
    resumed: int,
) -> ClassIncremental:
    counts = tuple(len(stage.test) for stage in stages)
    accuracy = [[c / n for c, n in zip(r["correct"], counts, strict=False)] for r in records]
    return ClassIncremental(
        tasks=groups,
        accuracy=tuple(map(tuple, accuracy)),
        rows=counts,
        stages=tuple(records),
        prompt=prompt,
        resumed=resumed,
    )


def _learned(
    *,
    backbone: Backbone,
    task: HeadTask,
    method: Method,
    rows: Sequence[Row],
    recipe: Recipe,
    start: Mapping[str, Tensor] | None,
    cache: FeatureCache | None,
    progress: bool | Progress,
) -> TunedPrompt:
    """Train on one task, from the state after the task before it."""
    with warnings.catch_warnings():
        # Of most classes there are no rows yet, or any more.
        warnings.filterwarnings("ignore", "no training row has the labels", SoftpromptWarning)
        return fit(
            backbone,
            task,
            method,
            rows,
            recipe=recipe,
            start=start,
            cache_features=cache or False,
            progress=progress,
        )


def _record(
    number: int, stage: Stage, tuned: TunedPrompt, correct: Sequence[int], test_seconds: float
) -> Record:
    return {
        "task": number,
        "rows": len(stage.train),
        "rehearsed": stage.rehearsed,
        "correct": list(correct),
        "seconds": tuned.recipe.get("seconds"),
        "test_seconds": test_seconds,
        "trained_parameters": tuned.recipe["trained_parameters"],
        "history": list(tuned.history),
    } | {name: tally.tolist() for name, tally in tallies_of(tuned.module).items()}
