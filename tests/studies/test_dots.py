"""Dot plots: every seed is there, and nothing lies outside of what scores can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.studies.dots import dot_plot, dot_values, dots_of
from softprompt.studies.results import read_results
from tests.studies.made_up import ended, made_up

AXES = {"method": {"short": {}, "long": {"method.length": 3}}}
SCORES = {"short": [0.8, 0.8, 0.9], "long": [0.95, 1.0, 1.0]}


def test_every_seed_has_its_place_and_the_best_stands_on_top(tmp_path: Path) -> None:
    def facts(run: Any) -> Any:
        return ended(run, SCORES[run.cell["method"]][run.seed])

    results = read_results(made_up(tmp_path, facts, axes=AXES, seeds=[0, 1, 2]))
    [dots] = dots_of(results)
    assert list(dots.lines) == ["long", "short"]
    assert dots.ends == (0, 1)  # the commonest label scores 0.5
    values = dot_values(results, dots)
    assert values["chance"] == 50
    assert [[round(seed["at"]) for seed in line["seeds"]] for line in values["lines"]] == [
        [95, 100, 100],
        [80, 80, 90],
    ]
    assert [seed["row"] for seed in values["lines"][1]["seeds"]] == [
        0,
        -1,
        0,
    ]  # equal ones lie beside each other
    for line in values["lines"]:
        low, high = line["range"]
        assert 0 <= low <= line["at"] <= high <= 100
    assert values["lines"][1]["text"].startswith("83.3  [")
    assert "seeds 80.0, 80.0, 90.0" in values["lines"][1]["told"]


def test_scores_that_lie_close_get_an_axis_of_their_own(tmp_path: Path) -> None:
    def facts(run: Any) -> Any:
        told = ended(run, 0.7 + 0.01 * run.seed, main_metric="macro_f1")
        return told | {"metrics": {"test": {"macro_f1": 0.7 + 0.01 * run.seed}}}

    results = read_results(made_up(tmp_path, facts, axes=AXES, seeds=[0, 1]))
    [dots] = dots_of(results)
    low, high = dots.ends
    assert 0.6 < low <= 0.7
    assert 0.71 <= high < 0.8
    assert dots.chance is None


def test_the_picture_has_a_panel_for_each_condition(tmp_path: Path) -> None:
    axes = AXES | {"recipe.weight_decay": [0.0, 0.1]}
    plot = dot_plot(read_results(made_up(tmp_path, lambda run: ended(run, 0.5), axes=axes)))
    assert plot is not None
    assert [panel.get_title() for panel in plot.draw("black").axes] == [
        "weight_decay 0.0",
        "weight_decay 0.1",
    ]
