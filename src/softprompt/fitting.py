"""fit: learn a prompt for a task on a frozen backbone."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt import training
from softprompt.backbones.base import Backbone
from softprompt.binding import (
    Rows,
    bind,
    evaluate,
    identity_of,
    load_state,
    named_state,
    new_head,
    read_rows,
    settings_of,
    trained_tensors,
)
from softprompt.data import names_file
from softprompt.errors import SoftpromptWarning, TrainingDiverged
from softprompt.feature_cache import FeatureCache, with_features
from softprompt.model import HeadModel, PromptedModel, WordModel
from softprompt.outputs import EncodedRow, windows_of
from softprompt.progress import ConsoleProgress, Progress, Silent
from softprompt.prompts import BuildContext, Method
from softprompt.recipe import Recipe
from softprompt.search import SearchProblem
from softprompt.tasks.base import Row, Task
from softprompt.tasks.columns import guess
from softprompt.tuned import TunedPrompt

log = logging.getLogger(__name__)


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
    learned nothing.
    """
    if recipe is not None and settings:
        raise ValueError(f"give either recipe or its fields, not both: {sorted(settings)}")
    known = [entry.name for entry in fields(Recipe)]
    for name in settings:
        if name not in known:
            raise ValueError(f"a recipe has no setting {name!r}{guess(name, known)}")
    recipe = recipe or Recipe(**settings)
    train_rows = read_rows(train, _split_of(train, "train"))
    validation_rows = None
    if validation is not None:
        validation_rows = read_rows(validation, _split_of(validation, "validation"))

    if reason := method.unsupported(backbone.spec):
        raise ValueError(
            f"{method.name} cannot be used on {backbone.name} ({backbone.spec.family}): {reason}"
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    own = method.prepare(backbone, generator)
    prepared = own.with_settings(
        gradient_checkpointing=recipe.gradient_checkpointing, compiled=recipe.compile
    )
    spec = prepared.spec

    def rows_as_text() -> list[EncodedRow]:
        plain = bind(prepared, task, 0, recipe.max_tokens)
        return [plain.encode(row) for row in train_rows]

    context = BuildContext(
        spec=spec,
        labels=task.label_words,
        rows=rows_as_text,
        generator=generator,
    )
    head = new_head(method, task, spec, generator)  # first: whatever the method, it starts the same
    head = None if head is None else head.to(prepared.device)
    module = method.build(context).to(prepared.device)
    encoder = bind(prepared, task, module.length, recipe.max_tokens, module.prefix_length, module.pooling)
    model = PromptedModel(prepared, [module], [head])
    state = start.state() if isinstance(start, TunedPrompt) else start
    if state is not None:
        load_state(state, named_state(module, prepared.model, head))
        module.goes_on()
    parameters = trained_tensors(module, prepared.model, head)
    changed = [p for name, p in parameters.items() if name.startswith("backbone.")]
    if changed and own is backbone:
        raise ValueError(
            f"{len(changed)} weights of {backbone.name} require a gradient, and {method.name} trains none of them: freeze "
            "the model with model.requires_grad_(False), as load_backbone does"
        )
    peak = recipe.learning_rate or method.learning_rate(spec)

    def validate() -> dict[str, float]:
        model.forget()
        assert validation_rows is not None
        # Encoded once: what is kept of a row, is kept of its image.
        rows = validation_encoded or encoded(validation_rows)
        validation_encoded[:] = rows
        metrics = evaluate(model, task, encoder, validation_rows, encoded=rows)
        model.forget()
        evaluations.append(metrics)
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    def result(
        history: Sequence[Mapping[str, Any]], known: Mapping[str, float] | None = None, **facts: Any
    ) -> TunedPrompt:
        model.forget()
        metrics: dict[str, Any] = {}
        if validation_rows:
            # The best tensors were evaluated already, unless that was before the run was resumed.
            found = next((e for e in evaluations if known and known.items() <= e.items()), None)
            metrics["validation"] = found or (validate() and evaluations[-1])
        baked = module.bake()
        return TunedPrompt(
            prepared.with_settings(),
            task,
            method,
            baked.requires_grad_(False),
            recipe.max_tokens,
            settings_of(recipe)
            | {"rows": len(train_rows), "learning_rate": peak}
            | facts
            | {"trained_parameters": sum(p.numel() for p in parameters.values())},
            metrics,
            history,
            None if own is backbone else identity_of(backbone),
            None if head is None else head.requires_grad_(False),
            None if baked is module else module,
        )

    def encoded(rows: Sequence[Row], *, cut: bool = False) -> list[EncodedRow]:
        found = [encoder.encode(row) for row in rows]
        if cut:  # what is trained on: the windows of a row that is too long
            found = [part for row in found for part in windows_of(row)]
        if cache is None:
            return found
        # Of the given backbone: what a method puts into its copy is no part of what is frozen.
        return with_features(backbone, found, method.frozen_layers(spec), cache, batch_size=recipe.batch_size)

    cache = FeatureCache.of(cache_features)
    evaluations: list[dict[str, Any]] = []
    validation_encoded: list[EncodedRow] = []
    watcher = ConsoleProgress() if progress is True else Silent() if progress is False else progress
    if not parameters:
        problem = SearchProblem(
            prepared,
            task,
            lambda task, virtual_tokens: bind(prepared, task, virtual_tokens, recipe.max_tokens),
            encoder,
            train_rows,
            recipe,
            validate if validation_rows else None,
            watcher,
        )
        found = method.search(problem, module)
        tuned = result([]) if found is None else result(found.history, found.metrics, **found.facts)
        _warn(task.concerns(train_rows, tuned.metrics.get("validation", {}) if found else {}))
        return tuned

    groups = method.parameter_groups(module, peak)
    if changed:
        groups.append({"params": changed, "lr": peak})
    groups = [group for group in groups if group["params"]]
    if head is not None:
        usual = method.head_learning_rate(spec) if groups else peak
        groups.append({"params": [*head.parameters()], "lr": recipe.head_learning_rate or usual})
    log.info("%s: %d trained parameters", method.name, sum(p.numel() for p in parameters.values()))
    try:
        run = training.train(
            WordModel(model) if head is None else HeadModel(model),
            parameters,
            groups,
            encoder,
            encoded(train_rows, cut=True),
            recipe,
            evaluate=validate if validation_rows else None,
            main_metric=task.main_metric if validation_rows else None,
            folder=None if folder is None else Path(folder),
            resume=resume,
            start=state,
            progress=watcher,
            tallies={f"prompt.{name}": tally for name, tally in module.tallies().items()},
        )
    except TrainingDiverged as error:
        error.last_good = result([], diverged_at=error.step)
        raise
    tuned = result(
        [record.as_dict() for record in run.history],
        run.metrics,
        steps_made=run.steps,
        best_step=run.best_step,
        seconds=run.seconds,
    )
    _warn(task.concerns(train_rows, tuned.metrics.get("validation", {})))
    return tuned


def _split_of(source: Rows, split: str) -> str | None:
    return split if isinstance(source, str) and not names_file(source) else None


def _warn(concerns: list[str]) -> None:
    for concern in concerns:
        warnings.warn(concern, SoftpromptWarning, stacklevel=3)
