"""A budget of time becomes steps, once: the number is saved, and a resumed run is the same run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.fitting.budget import _steps_in, within_budget
from softprompt.fitting.preparation import Data, prepare
from softprompt.training.recipe import Recipe
from tests.tiny.task import ROWS, TASK, tiny_backbone

METHOD = sp.PromptTuning(length=2)
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


@pytest.mark.parametrize(("given", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), (7, 7), ("12", 12)])
def test_times_are_seconds(given: Any, seconds: float) -> None:
    assert Recipe(budget=given).budget == seconds


@pytest.mark.parametrize("given", ["5 minutes", "", "-3s", 0, "nan"])
def test_what_is_no_time_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="budget"):
        Recipe(budget=given)


def test_one_of_steps_epochs_and_budget_is_given() -> None:
    with pytest.raises(ValueError, match="steps is 5 and budget is 60: give one of them"):
        Recipe(steps=5, budget="1m")
    with pytest.raises(ValueError, match="epochs is 2 and budget is 60: give one of them"):
        Recipe(epochs=2, budget="1m")
    with pytest.raises(ValueError, match="run 0 has a budget"):
        sp.fit_many(tiny_backbone(), TASK, [(METHOD, Recipe(budget=1))], ROWS)


def test_steps_fill_what_evaluations_leave() -> None:
    assert _steps_in(100.0, 0.5, 0.0, Recipe(budget=100)).steps == 200
    found = _steps_in(100.0, 0.5, 1.0, Recipe(budget=100))
    assert (found.steps, found.evaluation_interval, found.budget) == (180, 18, None)
    found = _steps_in(100.0, 0.5, 10.0, Recipe(budget=100))  # two evaluations are a fifth
    assert (found.steps, found.evaluation_interval) == (160, 80)
    found = _steps_in(100.0, 0.5, 5.0, Recipe(budget=100, evaluate_every=10))
    assert (found.steps, found.evaluation_interval) == (100, 10)
    assert _steps_in(-1.0, 0.5, 5.0, Recipe(budget=1)).steps == 1


@pytest.mark.parametrize("head_first", [False, True])
def test_the_trial_changes_nothing(head_first: bool) -> None:
    task = sp.SequenceClassification("{text}", labels=["neg", "pos"])
    recipe = Recipe(budget="1s", head_first=head_first)
    run = prepare(tiny_backbone(), task, METHOD, recipe, Data.read(ROWS, ROWS))
    before = {name: tensor.detach().clone() for name, tensor in run.parameters.items()}
    random = torch.get_rng_state()
    found = within_budget(run, None)
    assert found.recipe.budget is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in found.parameters.items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.slow
def test_a_run_with_a_budget_is_resumed_with_the_steps_that_it_was_begun_with(tmp_path: Path) -> None:
    class Stop(sp.Callback):
        def on_step(self, record: Any) -> None:
            if record.step == 3:
                raise KeyboardInterrupt

    def train(**settings: Any) -> sp.TunedPrompt:
        return sp.fit(tiny_backbone(), TASK, METHOD, ROWS, ROWS, folder=tmp_path, progress=False, **settings)

    with pytest.raises(KeyboardInterrupt):
        train(budget="2s", callbacks=[Stop()])
    resumed = train(budget="30s")
    steps = resumed.recipe["steps"]
    assert resumed.recipe["steps_made"] == steps
    assert "budget" not in resumed.recipe
    plain = sp.fit(
        tiny_backbone(),
        TASK,
        METHOD,
        ROWS,
        ROWS,
        steps=steps,
        evaluate_every=resumed.recipe["evaluate_every"],
        progress=False,
    )
    assert all(torch.equal(plain.state()[name], tensor) for name, tensor in resumed.state().items())
    assert json.dumps(resumed.recipe)


def test_too_little_time_is_said() -> None:
    with pytest.warns(sp.SoftpromptWarning, match="a budget of 0 seconds is enough for 1 steps"):
        tuned = sp.fit(tiny_backbone(), TASK, METHOD, ROWS, budget=0.001, progress=False)
    assert tuned.recipe["steps"] == 1
