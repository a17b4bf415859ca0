"""fit: learn a prompt for a task on a frozen backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.binding import bind
from softprompt.concerns import warn_of
from softprompt.data import Rows
from softprompt.errors import TrainingDiverged
from softprompt.features.cache import FeatureCache
from softprompt.fitting.preparation import Data, PreparedRun, prepare
from softprompt.model import HeadModel, WordModel
from softprompt.prompts import Method
from softprompt.search import SearchProblem
from softprompt.tasks.base import Task
from softprompt.tasks.columns import guess
from softprompt.training import steps as training
from softprompt.training.progress import ConsoleProgress, Progress, Silent
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt


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
    **settings: Any,
) -> TunedPrompt:
    """Train `method` for `task` on `backbone`, which stays as it is, to the bit.

    train, validation  rows: a list of dictionaries, a carrier's name, a csv, jsonl or parquet file, a hub data set.
                       A name with splits gives its "train" and "validation" split. The checkpoint with the best
                       validation metric is kept; without validation rows the last one.
    recipe             how to train; or its fields as keywords: fit(..., steps=500, batch_size=8)
    start              a prompt of the same method, or its `state()`, to go on from with a fresh optimizer; its head and
                       the weights that the method changed are taken over too
    folder             checkpoints go there, so that a run that was killed goes on when it is started again
    cache_features     compute what lies below the first trained weight once for each row: of a probe all of the backbone, of
                       PartialTuning and VPT(last_layers=...) the layers below. True: in memory; or a folder
    progress           True: a bar; False: silence; or your own

    Raises ValueError for data, templates and settings that do not fit together, TrainingDiverged when the loss becomes
    NaN (its `last_good` is the TunedPrompt before that). Warns with SoftpromptWarning when the prompt seems to have
    learned nothing, or no more than the commonest label.
    """
    if recipe is not None and settings:
        raise ValueError(f"give either recipe or its fields, not both: {sorted(settings)}")
    known = [entry.name for entry in fields(Recipe)]
    for name in settings:
        if name not in known:
            raise ValueError(f"a recipe has no setting {name!r}{guess(name, known)}")
    recipe = recipe or Recipe(**settings)
    state = start.state() if isinstance(start, TunedPrompt) else start
    data = Data.read(train, validation, FeatureCache.of(cache_features))
    watcher = ConsoleProgress() if progress is True else Silent() if progress is False else progress
    return fit_data(backbone, task, method, recipe, data, watcher, start=state, folder=folder, resume=resume)


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
) -> TunedPrompt:
    """`fit` on rows that were read, which runs of one task on one backbone may share, as they may `features`."""
    prepared = prepare(backbone, task, method, recipe, data, start=start, features=features)
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
            run = training.train(model, prepared.encoder, prepared.run(progress, folder, resume))
        except TrainingDiverged as error:
            error.last_good = prepared.result([], diverged_at=error.step)
            raise
        tuned = prepared.trained(run)
        judged = tuned.metrics.get("validation", {})
    warn_of(task.concerns(data.train, judged))
    return tuned


def _searched(prepared: PreparedRun, watcher: Progress) -> TunedPrompt | None:
    """What a method finds that trains no tensors; None: it looks for nothing."""
    backbone, data, recipe = prepared.backbone, prepared.data, prepared.recipe
    problem = SearchProblem(
        backbone,
        prepared.task,
        lambda task, virtual_tokens: bind(backbone, task, virtual_tokens, recipe.max_tokens),
        prepared.encoder,
        data.train,
        recipe,
        prepared.validate if data.validation else None,
        watcher,
    )
    found = prepared.method.search(problem, prepared.module)
    return None if found is None else prepared.result(found.history, found.metrics, **found.facts)
