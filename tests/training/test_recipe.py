"""The recipe: what it refuses, and the learning rate as a function of the step."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from softprompt.training.recipe import Recipe, RecipeSettings, lr_factor


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup": 300, "steps": 300}, ("warmup", "steps")),
        ({"warmup": 10.5}, ("warmup", "whole number")),
        ({"accumulation": 5, "batch_size": 4}, ("accumulation", "batch_size")),
        ({"evaluate_every": 11, "steps": 10}, ("evaluate_every", "steps")),
        ({"optimizer": "adafactor", "betas": (0.8, 0.9)}, ("betas", "optimizer")),
        ({"betas": (0.9, 1.0)}, ("betas", "below 1")),
        ({"learning_rate": float("nan")}, ("learning_rate",)),
        ({"learning_rate": 0.0}, ("learning_rate",)),
        ({"steps": 0}, ("steps",)),
        ({"trackers": ("nowhere",)}, ("trackers", "tensorboard")),
        ({"step": 10}, ("no setting 'step'", "'steps'")),
    ],
)
def test_settings_that_do_not_fit_are_named_in_the_error(
    settings: dict[str, Any], named: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match=r"^Recipe") as raised:
        Recipe(**settings)
    assert all(word in str(raised.value) for word in named)


def test_a_recipe_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Recipe().steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(("warmup", "expected"), [(0.06, 18), (18, 18), (0, 0), (1, 1)])
def test_warmup_is_a_fraction_below_one_and_else_steps(warmup: float, expected: int) -> None:
    assert Recipe(steps=300, warmup=warmup).warmup_steps == expected


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("linear", [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5]),
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_rises_in_the_warmup_and_follows_the_schedule(
    schedule: Any, factors: list[float]
) -> None:
    recipe = Recipe(steps=6, warmup=2, schedule=schedule)
    assert [lr_factor(recipe, step) for step in range(6)] == pytest.approx(factors)


def test_intervals_default_to_a_tenth_of_the_steps() -> None:
    assert (Recipe().evaluation_interval, Recipe(steps=5).evaluation_interval) == (30, 1)
    assert Recipe(evaluate_every=7).checkpoint_interval == 7
    assert Recipe(evaluate_every=7, checkpoint_every=2).checkpoint_interval == 2


def test_a_run_of_one_step_is_possible() -> None:
    assert lr_factor(Recipe(steps=1), 0) == 1.0


def test_the_keywords_of_fit_are_the_fields_of_the_recipe_with_their_types() -> None:
    hints = get_type_hints(Recipe)
    assert get_type_hints(RecipeSettings) == {field.name: hints[field.name] for field in fields(Recipe)}
