"""Warnings of a report: few seeds, lost runs, and rows or software that differ between runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.studies.doubts import doubts
from softprompt.studies.results import read_results
from tests.studies.made_up import ended, made_up

LINES = {
    "method": {
        "zero-shot": {"method": "zero-shot", "seeds": [0]},
        "prompts": {},
    },
    "recipe.steps": [2, 4],
}
FAILED = {
    "stage": "final",
    "error": {"type": "ValueError", "message": "no"},
    "traceback": "no",
    "wall_seconds": 1.0,
}


def told(folder: Any) -> list[str]:
    return doubts(read_results(folder))


def trained(run: Any, **changes: Any) -> dict[str, Any]:
    steps = 0 if run.cell["method"] == "zero-shot" else 4
    return ended(run, 0.5, **{"steps_made": steps, **changes})


def test_what_trains_nothing_needs_one_seed(tmp_path: Path) -> None:
    assert told(made_up(tmp_path, trained, axes=LINES, seeds=[0, 1, 2])) == []


def test_lines_with_few_seeds_are_named(tmp_path: Path) -> None:
    found = told(made_up(tmp_path, trained, axes=LINES, seeds=[0, 1]))
    assert found == ["2 seeds only of prompts: a spread over fewer than 3 says little."]


def test_a_line_that_lost_seeds_in_one_condition_is_named_with_them(tmp_path: Path) -> None:
    def facts(run: Any) -> dict[str, Any]:
        lost = run.seed == 2 and run.cell["method"] == "prompts" and run.cell["recipe.steps"] == "4"
        return FAILED | {"status": "diverged"} if lost else trained(run)

    assert told(made_up(tmp_path, facts, axes=LINES, seeds=[0, 1, 2])) == [
        "The tables are without runs that diverged: prompts, steps 4 (seed 2).",
        "2 seeds only of prompts, steps 4: a spread over fewer than 3 says little.",
    ]


@pytest.mark.parametrize("what", ["softprompt", "commit", "device", "precision", "torch"])
def test_software_that_changed_is_told(tmp_path: Path, what: str) -> None:
    def facts(run: Any) -> dict[str, Any]:
        found = ended(run, 0.5)
        place = found["environment"]["versions"] if what == "torch" else found["environment"]
        if run.seed == 2:
            place[what] = "other"
        return found

    [one] = told(made_up(tmp_path, facts, seeds=[0, 1, 2]))
    assert one.startswith(f"Runs were made with different {what}: ")


@pytest.mark.parametrize(
    ("changes", "rows", "name"),
    [
        ({}, "test", "test rows of test.csv"),
        (
            {"data": {"train": {"source": "train.csv", "limit": 5}}},
            "train",
            "train rows of train.csv limit 5",
        ),
        (
            {"protocol": {"name": "domain-shift", "domains": {"hotels": "hotels.csv"}}},
            "hotels",
            "hotels rows of hotels.csv",
        ),
        ({"protocol": {"name": "few-shot", "shots": 4}}, "train", "train rows of train.csv"),
    ],
)
def test_rows_that_changed_while_the_study_ran_are_told(
    tmp_path: Path, changes: dict[str, Any], rows: str, name: str
) -> None:
    """Two methods that read the same rows, and did not."""

    def facts(run: Any) -> dict[str, Any]:
        found = ended(run, 0.5)
        if run.cell["method"] == "longer":
            found["rows"][rows] = {"count": 20, "sha256": "other"}
        return found

    axes = {"method": {"short": {}, "longer": {"method.length": 3}}}
    folder = made_up(tmp_path, facts, axes=axes, seeds=[0, 1, 2], **changes)
    assert f"The {name} changed while the study ran." in told(folder)


def test_few_rows_that_each_seed_draws_for_itself_have_not_changed(tmp_path: Path) -> None:
    def facts(run: Any) -> dict[str, Any]:
        found = ended(run, 0.5)
        drawn = {"count": 8, "sha256": f"drawn with {run.seed}, {run.values['shots']}"}
        return found | {"rows": {"train": drawn, "validation": drawn, "test": found["rows"]["test"]}}

    axes = {"method": {"prompts": {}}, "protocol.shots": [4, 8]}
    assert told(made_up(tmp_path, facts, axes=axes, seeds=[0, 1, 2], protocol="few-shot")) == []


def test_scores_on_validation_rows_are_told(tmp_path: Path) -> None:
    data = {"train": "train.csv", "validation": "validation.csv"}
    [one] = told(made_up(tmp_path, lambda run: ended(run, 0.5), seeds=[0, 1, 2], data=data))
    assert one.startswith("There are no test data")


def test_warnings_of_runs_that_differ_in_their_numbers_alone_are_one_doubt(tmp_path: Path) -> None:
    def facts(run: Any) -> dict[str, Any]:
        alike = f"test accuracy 0.{run.seed}1 is no better than always giving the most frequent label, 0.5"
        return ended(run, 0.4, concerns=[alike, "no test row was given the labels ['pos']"])

    assert told(made_up(tmp_path, facts, seeds=[1, 2, 3])) == [
        "3 runs, for example: test accuracy 0.11 is no better than always giving the most frequent label, 0.5",
        "3 runs: no test row was given the labels ['pos']",
    ]
