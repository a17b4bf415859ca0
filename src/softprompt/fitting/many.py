"""fit_many: train several prompts at once on one frozen backbone, each as if it were trained alone, up to rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.concerns import warn_of
from softprompt.data import Rows
from softprompt.errors import TrainingDiverged
from softprompt.fitting.preparation import Data, PreparedRun, check_arguments, prepare
from softprompt.fitting.resuming import as_begun
from softprompt.model import PromptedModel, carrying, join_prompts
from softprompt.outputs import EncodedRow, Penalized, PromptOutput
from softprompt.prompts import Method
from softprompt.surroundings import undisturbed_training
from softprompt.tasks.base import Task
from softprompt.training.loop import train_together
from softprompt.training.progress import ConsoleProgress, Progress, Shared, Silent
from softprompt.training.randomness import Streams
from softprompt.training.recipe import Recipe
from softprompt.training.run import TrainingResult
from softprompt.tuned import TunedPrompt

# Settings that must be equal, because the runs share each pass.
SHARED_SETTINGS = ("steps", "batch_size", "accumulation", "max_tokens", "gradient_checkpointing", "compile")


@undisturbed_training
def fit_many(
    backbone: Backbone,
    task: Task,
    runs: Sequence[tuple[Method, Recipe]],
    train: Rows,
    validation: Rows | None = None,
    *,
    folder: str | Path | Sequence[str | Path] | None = None,
    resume: bool = True,
    progress: bool | Sequence[Progress] = True,
) -> list[TunedPrompt]:
    """Train several methods or recipes at once: the rows of all runs' steps are one batch on the frozen backbone, and
    each row carries the prompt of its run.

    Up to rounding, every run has the tensors, metrics and history that `fit` gives it alone: it has its own order of rows,
    optimizer, clipping, schedule, evaluations, early stop and randomness. A step needs the memory of all runs together.

    runs               for example one method with a recipe for each seed. Methods may differ, and recipes in everything
                       but steps, batch_size, accumulation, max_tokens, gradient_checkpointing and compile
    train, validation  as in `fit`
    folder             checkpoints are written to its folders run-0, run-1 ...; or give a folder for each run. `fit` can
                       resume these checkpoints, and fit_many those of `fit`
    resume             as in `fit`
    progress           True: one bar for all; False: silence; or your own, one for each run

    Returns the tuned prompt of each run. A run that diverges drops out with a SoftpromptWarning: its result has the tensors
    before that, and its recipe says `diverged_at`, the step.
    Raises ValueError for runs that cannot share a pass, such as methods that change the backbone's weights, and whatever
    `fit` raises.
    """
    runs = list(runs)
    for method, _ in runs:
        check_arguments(backbone, task, method)
    data = Data.read(train, validation)
    watchers, folders = _watchers(progress, len(runs)), _folders(folder, len(runs))
    found = fit_many_data(backbone, task, runs, data, watchers, folders, resume=resume)
    for number, learned in enumerate(found):
        warn_of(f"run {number}: {concern}" for concern in learned.concerns)
    return [learned.tuned for learned in found]


@dataclass(frozen=True)
class Learned:
    """How one of several runs ended.

    tuned     its result; where it diverged, with the tensors before that
    diverged  the error for which it dropped out; None: it was trained to its end
    concerns  sentences that the user should be warned with
    """

    tuned: TunedPrompt
    diverged: TrainingDiverged | None
    concerns: Sequence[str]


@undisturbed_training
def fit_many_data(
    backbone: Backbone,
    task: Task,
    runs: Sequence[tuple[Method, Recipe]],
    data: Data,
    progress: Sequence[Progress],
    folders: Sequence[Path | None],
    *,
    resume: bool = True,
    features: RowFeatures | None = None,
) -> list[Learned]:
    """`fit_many` on rows that were read already.

    data      may be shared with other runs of this task on this backbone
    progress  one for each run
    folders   where each run's checkpoints are written; None: nowhere
    resume    as in `fit`
    features  of the backbone, where runs share them
    Raises ValueError for runs that cannot share a pass, and whatever `fit` raises.
    """
    check_together(runs)
    given = backbone
    backbone, data = as_begun(given, data, folders if resume else [])
    features = (features if backbone is given else None) or RowFeatures(backbone)
    prepared = []
    for number, (method, recipe) in enumerate(runs):
        prepared.append(prepare(backbone, task, method, recipe, data, features=features))
        _check_prepared(number, prepared[-1])
    streams = Streams(backbone.device)
    outcomes = train_together(
        Together([one.model for one in prepared], streams),
        # Any run's encoder: the task's loss does not depend on the prompt.
        prepared[0].encoder,
        [
            one.run(watcher, place, resume, number)
            for number, (one, watcher, place) in enumerate(zip(prepared, progress, folders, strict=True))
        ],
        streams,
    )
    return [_learned(one, outcome) for one, outcome in zip(prepared, outcomes, strict=True)]


def _learned(prepared: PreparedRun, outcome: TrainingResult | TrainingDiverged) -> Learned:
    if isinstance(outcome, TrainingDiverged):
        tuned = prepared.result([], diverged_at=outcome.step)
        return Learned(tuned, outcome, [str(outcome)])
    tuned = prepared.trained(outcome)
    found = prepared.task.concerns(prepared.data.train, tuned.metrics.get("validation", {}))
    return Learned(tuned, None, [*([outcome.concern] if outcome.concern else []), *found])


@dataclass(frozen=True)
class Together:
    """Models with one prompt each, on one backbone, as one model for training.

    models   `row.prompt` is the number of a row's model; rows come in the order of the models
    streams  the random numbers of each model
    """

    models: Sequence[PromptedModel]
    streams: Streams

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        members: dict[int, list[int]] = {}
        for b, row in enumerate(rows):
            members.setdefault(row.prompt, []).append(b)
        mine = {number: carrying([rows[b] for b in places], 0) for number, places in members.items()}
        prompt = self._prompt(mine, members)
        carried = [replace(row, prompt=g) for g, part in enumerate(mine.values()) for row in part]
        backbone = self.models[0].backbone
        answers: Any
        if self.models[0].heads[0] is None:
            answers = backbone.score(carried, prompt)
        else:
            states = backbone.states(carried, prompt)
            parts = states.split([sum(len(row.read) for row in part) for part in mine.values()])
            outputs = []
            for (number, part), own in zip(mine.items(), parts, strict=True):
                with self.streams.of(number):
                    outputs.append(self.models[number].apply_heads(part, own))
            answers = torch.cat(outputs)
        return answers if prompt.penalty is None else Penalized(answers, prompt.penalty)

    def _prompt(self, mine: dict[int, list[EncodedRow]], members: dict[int, list[int]]) -> PromptOutput:
        outputs = []
        for number, part in mine.items():
            with self.streams.of(number):
                outputs.append(self.models[number].prompt(part))
            if outputs[-1].dropout and torch.is_grad_enabled():
                raise ValueError(
                    f"run {number} drops numbers of its prompt by a mask for each row, which the backbone draws for the "
                    'whole batch: the masks would not be those of the run alone. Take dropout_mask="batch", or dropout 0, '
                    "or fit"
                )
        return join_prompts(outputs, [*members.values()])


def check_together(runs: Sequence[tuple[Method, Recipe]]) -> None:
    """Raises ValueError for recipes that cannot take their steps together."""
    if not runs:
        raise ValueError("there are no runs: give a method and a recipe for each")
    first = runs[0][1]
    for number, (_, recipe) in enumerate(runs):
        for name in SHARED_SETTINGS:
            given, expected = getattr(recipe, name), getattr(first, name)
            if given != expected:
                raise ValueError(
                    f"runs take their steps together, so that {name} must be the same in all recipes: it is {expected} in "
                    f"run 0 and {given} in run {number}"
                )
        if recipe.budget is not None:
            raise ValueError(
                f"run {number} has a budget, which a trial of one run turns into steps: give steps, or use fit"
            )
        if recipe.trackers:
            raise ValueError(
                f"run {number} has trackers {list(recipe.trackers)}, which follow one run at a time: leave them out (the "
                "history of each run is in its result), or fit one run after the other"
            )


def _check_prepared(number: int, prepared: PreparedRun) -> None:
    name = prepared.method.name
    if not prepared.is_shared:
        raise ValueError(
            f"run {number}: {name} changes weights of the backbone, so that its rows cannot share a pass with those of other "
            "runs: use fit"
        )
    if not prepared.parameters:
        raise ValueError(f"run {number}: {name} trains no tensors: there are no steps to share, use fit")


def _folders(folder: str | Path | Sequence[str | Path] | None, count: int) -> list[Path | None]:
    if folder is None:
        return [None] * count
    if isinstance(folder, str | Path):
        return [Path(folder) / f"run-{number}" for number in range(count)]
    if len(folder) != count or len(set(map(Path, folder))) != count:
        raise ValueError(
            f"{len(folder)} folders ({len(set(map(Path, folder)))} different ones) were given for {count} runs: give one for "
            "each, or one for all"
        )
    return [Path(place) for place in folder]


def _watchers(progress: bool | Sequence[Progress], count: int) -> Sequence[Progress]:
    if isinstance(progress, bool):
        return [Shared(ConsoleProgress() if progress else Silent(), count)] * count
    if len(progress) != count:
        raise ValueError(
            f"{len(progress)} progresses were given for {count} runs: give one for each, or True"
        )
    return progress
