"""The sentence that a report begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.studies.finding import few_rows, finding
from softprompt.studies.results import StudyResults, read_results
from tests.studies.made_up import ended, made_up

AXES = {"method": {"prompt-tuning": {}, "LoRA": {"method": {"name": "lora"}}}}


def found(
    folder: Path, scores: dict[str, float], rows: int = 12, axes: Any = AXES, **changes: Any
) -> StudyResults:
    def facts(run: Any) -> dict[str, Any]:
        told = ended(run, scores[run.cell["method"]] + 0.001 * run.seed)
        return told | {"rows": {name: {"count": rows, "sha256": name} for name in told["rows"]}}

    return read_results(made_up(folder, facts, axes=axes, **changes))


def test_two_seeds_establish_nothing(tmp_path: Path) -> None:
    results = found(tmp_path, {"prompt-tuning": 0.6, "LoRA": 0.208}, seeds=[0, 1])
    sentence = "prompt-tuning 60.1, LoRA 20.8; no difference is established: 2 seeds, 12 test rows."
    assert finding(results) == (sentence, "")


def test_eight_seeds_that_agree_establish_a_difference(tmp_path: Path) -> None:
    results = found(tmp_path, {"prompt-tuning": 0.7, "LoRA": 0.6}, rows=400, seeds=list(range(8)))
    sentence, remark = finding(results)
    assert "the difference is established (p = 0.0078, corrected): 8 seeds, 400 test rows." in sentence
    assert remark == ""
    assert few_rows(results) == ""


def test_a_baseline_that_wins_is_said_to_win(tmp_path: Path) -> None:
    sentence, remark = finding(found(tmp_path, {"prompt-tuning": 0.6, "LoRA": 0.8}, seeds=[0]))
    assert sentence == "LoRA 80.0, prompt-tuning 60.0; no difference is established: 1 seed, 12 test rows."
    assert remark == "LoRA is a baseline: no prompt has a higher score."


def test_what_the_commonest_label_reaches_is_said_where_nothing_exceeds_it(tmp_path: Path) -> None:
    _, remark = finding(found(tmp_path, {"prompt-tuning": 0.5, "LoRA": 0.4}, seeds=[0]))
    assert remark == "Always giving the commonest label scores 50.0, which nothing here exceeds."


def test_few_rows_are_warned_of_with_the_width_of_an_interval(tmp_path: Path) -> None:
    results = found(tmp_path, {"prompt-tuning": 0.5, "LoRA": 0.4}, seeds=[0])
    assert few_rows(results).startswith("12 test rows are few: an interval below is 49 points wide.")


@pytest.mark.parametrize("many", [3, 5])
def test_of_many_options_the_best_two_are_named(tmp_path: Path, many: int) -> None:
    scores = {f"length {i}": 0.9 - 0.1 * i for i in range(many)}
    axes = {"method": {name: {"method.length": i + 1} for i, name in enumerate(scores)}}
    sentence, _ = finding(found(tmp_path, scores, axes=axes, seeds=[0]))
    last = f"{100 * (0.9 - 0.1 * (many - 1)):.1f}"
    assert sentence.startswith(
        f"length 0 90.0, length 1 80.0, {many - 2} more down to {last}; no difference between"
    )


def test_each_metric_has_its_sentence_and_names_what_is_averaged(tmp_path: Path) -> None:
    kinds = {"hotels": {"data.test": "hotels.csv"}, "films": {}, "halves": {"recipe.steps": 8}}

    def facts(run: Any) -> dict[str, Any]:
        told = ended(run, 0.6 if run.cell["method"] == "LoRA" else 0.7)
        if run.cell["kind"] == "halves":
            told |= {"main_metric": "macro_f1", "metrics": {"test": {"macro_f1": 0.5}}}
        return told

    results = read_results(
        made_up(tmp_path, facts, axes=AXES | {"kind": kinds}, compare="method", seeds=[0, 1])
    )
    sentence, _ = finding(results)
    basis = "2 seeds, 20 test rows"
    assert sentence.startswith(
        f"accuracy: prompt-tuning 70.0, LoRA 60.0; no difference is established: {basis}, mean over 2"
    )
    assert sentence.endswith(
        f"macro_f1: prompt-tuning 50.0, LoRA 50.0; no difference is established: {basis}."
    )
