"""Time that becomes steps: a trial on the machine at hand measures a step and an evaluation, once."""

from __future__ import annotations

import logging
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

from softprompt.concerns import warn_of
from softprompt.fitting.preparation import PreparedRun
from softprompt.model import HeadModel, WordModel
from softprompt.prompts.hooks import tallies_of
from softprompt.state import copy_tensors
from softprompt.training import loop as training
from softprompt.training.checkpoint import begun_with
from softprompt.training.progress import Silent
from softprompt.training.recipe import Recipe

log = logging.getLogger(__name__)

_TRIED = 5  # steps; the first is slower than the others and does not count
_EVALUATIONS = 10
_SHARE = 0.2  # of the budget that evaluations may take
_FEW = 20


def within_budget(prepared: PreparedRun, folder: str | Path | None) -> PreparedRun:
    """The run with as many steps as its recipe's `budget` of seconds allows.

    folder: where a run may have been begun, which keeps the steps that it was begun with; None: nowhere
    Warns with SoftpromptWarning where the time is enough for a few steps only.
    """
    recipe = prepared.recipe
    budget = float(recipe.budget or 0)
    begun = {} if folder is None else begun_with(Path(folder)).get("recipe", {})
    if "steps" in begun:
        kept = replace(recipe, budget=None, steps=begun["steps"], evaluate_every=begun["evaluate_every"])
        return replace(prepared, recipe=kept)
    started = time.perf_counter()
    beginning, step, evaluation = _tried(prepared)
    left = budget - (time.perf_counter() - started) - beginning
    found = _steps_in(left, step, evaluation, recipe)
    log.info(
        "a budget of %.0f s: %d steps of %.2g s, an evaluation of %.2g s every %d steps",
        budget,
        found.steps,
        step,
        evaluation,
        found.evaluation_interval,
    )
    if found.steps < _FEW:
        sentence = (
            f"a budget of {budget:.0f} seconds is enough for {found.steps} steps of {step:.2g} seconds on this machine: a"
            " prompt seldom learns much in so few"
        )
        warn_of([sentence])
    return replace(prepared, recipe=found)


def _steps_in(left: float, step: float, evaluation: float, recipe: Recipe) -> Recipe:
    """The recipe with the steps for `left` seconds; evaluations take a fifth of them at most, unless their number was given."""
    if recipe.evaluate_every is not None:
        steps = max(1, int(left / (step + evaluation / recipe.evaluate_every)))
        return replace(recipe, budget=None, steps=steps, evaluate_every=min(steps, recipe.evaluate_every))
    count = max(1, min(_EVALUATIONS, int(_SHARE * left / evaluation))) if evaluation else _EVALUATIONS
    steps = max(1, int((left - count * evaluation) / step))
    return replace(recipe, budget=None, steps=steps, evaluate_every=max(1, math.ceil(steps / count)))


def _tried(prepared: PreparedRun) -> tuple[float, float, float]:
    """Seconds before the first step, of a step and of an evaluation; the run is left as it was."""
    recipe = replace(prepared.recipe, budget=None, steps=_TRIED, evaluate_every=None, warmup=0, trackers=())
    trial = replace(prepared, recipe=recipe, data=replace(prepared.data, validation=None))
    changed = {**prepared.parameters, **tallies_of(prepared.module)}
    before = {name: tensor.detach().clone() for name, tensor in changed.items()}
    prepared.encoded("train")  # once for the trial and the run
    started = time.perf_counter()
    run = trial.run(Silent())
    beginning = time.perf_counter() - started
    model = WordModel(prepared.model) if prepared.head is None else HeadModel(prepared.model)
    history = training.train(model, prepared.encoder, run).history
    copy_tensors(before, into=changed)
    prepared.model.forget()
    step = statistics.median([record.seconds for record in history][1:])
    if not prepared.data.validation:
        return beginning, step, 0.0
    started = time.perf_counter()
    prepared.validate()
    return beginning, step, time.perf_counter() - started
