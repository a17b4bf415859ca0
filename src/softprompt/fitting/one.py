"""fit: train a prompt for a task on a frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.binding import bind
from softprompt.concerns import warn_of
from softprompt.data import Rows
from softprompt.errors import TrainingDiverged, shown
from softprompt.evaluation import Metrics
from softprompt.features.cache import FeatureCache
from softprompt.fitting.budget import within_budget
from softprompt.fitting.preparation import Data, PreparedRun, check_arguments, prepare
from softprompt.fitting.resuming import as_begun
from softprompt.model import HeadModel, WordModel
from softprompt.other_names import name_here
from softprompt.prompts import Method
from softprompt.search import Searches, SearchProblem
from softprompt.surroundings import undisturbed_training
from softprompt.tasks.base import Task
from softprompt.tasks.columns import guess
from softprompt.tasks.room import Room
from softprompt.training import loop as training
from softprompt.training.callbacks import Callback
from softprompt.training.progress import ConsoleProgress, Progress, Silent
from softprompt.training.recipe import Recipe, RecipeSettings
from softprompt.tuned import TunedPrompt


@undisturbed_training
def fit(
    backbone: Backbone,
    task: Task,
    method: Method,
    train: Rows,
    validation: Rows | None = None,
    *,
    recipe: Recipe | None = None,
    start: TunedPrompt | Mapping[str, Tensor] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    cache_features: bool | str | Path | FeatureCache = False,
    progress: bool | Progress = True,
    metrics: Metrics | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Unpack[RecipeSettings],
) -> TunedPrompt:
    """Train `method` for `task` on `backbone`, which is left bit-identical.

    train, validation  rows: a list of dictionaries, the name of a built-in data set, a csv, jsonl or parquet file, or a
                       data set on the hub. A name with splits gives its "train" and "validation" split. The tensors with
                       the best validation metric are the result; without validation rows the last ones.
    recipe             how to train; or its fields as keywords: fit(..., steps=500, batch_size=8)
    start              initial values: a prompt of the same method, or its `state()`, with its head and the weights that
                       the method changed; the optimizer starts anew
    folder             where checkpoints are written, so that a run that was killed is resumed when it is started again
    resume             False: a checkpoint in the folder is removed, and the run starts anew
    cache_features     compute the layers below the first trained weight once for each row: the whole backbone for a probe,
                       the frozen layers for PartialTuning and VPT(last_layers=...). True: cached in memory; or a folder
    progress           True: a bar; False: silence; or your own
    metrics            further metrics of the validation rows: name -> function of the predictions and the rows. With
                       main_metric=name it decides which tensors are best
    callbacks          objects of `Callback`, which are told of steps, evaluations and checkpoints, and may stop the run

    It trains inside `torch.no_grad()` too. Raises TypeError for a model, a name or a class where an object is expected,
    ValueError for data, templates and settings that do not fit together, TrainingDiverged when the loss becomes
    NaN (its `last_good` is the TunedPrompt before that). Warns with SoftpromptWarning when the prompt seems to have
    learned nothing, or no more than the commonest label.
    """
    check_arguments(backbone, task, method)
    if recipe is not None and not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe is {shown(recipe)}, expected sp.Recipe(...), or its fields as keywords of fit"
        )
    if recipe is not None and settings:
        raise ValueError(f"give either recipe or its fields, not both: {sorted(settings)}")
    known = [entry.name for entry in fields(Recipe)]
    for name in settings:
        if name not in known:
            taken = [*known, "train", "validation", "folder", "resume", "metrics", "recipe", "backbone"]
            here = name_here(name, taken)
            raise ValueError(
                f"a recipe has no setting {name!r}" + (f"; {here}" if here else guess(name, known))
            )
    recipe = recipe or Recipe(**settings)
    state = start.state() if isinstance(start, TunedPrompt) else start
    data = Data.read(train, validation, FeatureCache.of(cache_features))
    watcher = ConsoleProgress() if progress is True else Silent() if progress is False else progress
    return fit_data(
        backbone,
        task,
        method,
        recipe,
        data,
        watcher,
        start=state,
        folder=folder,
        resume=resume,
        metrics=metrics,
        callbacks=callbacks,
    )


@undisturbed_training
def fit_data(
    backbone: Backbone,
    task: Task,
    method: Method,
    recipe: Recipe,
    data: Data,
    progress: Progress,
    *,
    start: Mapping[str, Tensor] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    features: RowFeatures | None = None,
    metrics: Metrics | None = None,
    callbacks: Sequence[Callback] = (),
) -> TunedPrompt:
    """`fit` on rows that were read already.

    data      may be shared by the runs of one task on one backbone
    progress  is told of each step and evaluation
    start     initial values by name, as `TunedPrompt.state` gives them
    folder    as in `fit`
    resume    as in `fit`
    features  of the backbone, where runs share them
    Raises and warns as `fit` does.
    """
    given = backbone
    backbone, data = as_begun(given, data, [folder] if resume else [])
    features = features if backbone is given else None
    prepared = prepare(backbone, task, method, recipe, data, start=start, features=features, metrics=metrics)
    if recipe.budget is not None and prepared.parameters:
        prepared = within_budget(prepared, folder if resume else None)
    judged: Mapping[str, Any] = {}
    if not prepared.parameters:
        tuned = _searched(prepared, progress)
        if tuned is None:
            tuned = prepared.result([])
        else:
            judged = tuned.metrics.get("validation", {})
    else:
        model = WordModel(prepared.model) if prepared.head is None else HeadModel(prepared.model)
        try:
            run = training.train(
                model, prepared.encoder, prepared.run(progress, folder, resume, callbacks=callbacks)
            )
        except TrainingDiverged as error:
            error.last_good = prepared.result([], diverged_at=error.step)
            raise
        tuned = prepared.trained(run)
        judged = tuned.metrics.get("validation", {})
    warn_of(task.concerns(data.train, judged))
    return tuned


def _searched(prepared: PreparedRun, watcher: Progress) -> TunedPrompt | None:
    """The result of a method that searches for its prompt; None: it does not search."""
    if not isinstance(prepared.method, Searches):
        return None
    backbone, data, recipe = prepared.backbone, prepared.data, prepared.recipe
    problem = SearchProblem(
        backbone=backbone,
        task=prepared.task,
        bind=lambda task, virtual_tokens: bind(backbone, task, Room(recipe.max_tokens, virtual_tokens)),
        encoder=prepared.encoder,
        data=data.train,
        recipe=recipe,
        evaluate=prepared.validate if data.validation else None,
        progress=watcher,
    )
    found = prepared.method.search(problem, prepared.module)
    return None if found is None else prepared.result(found.history, found.metrics, **found.facts)
