"""A study's file and the runs that it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from softprompt.studies import Outcome, parse_study, plan, read_study
from softprompt.studies.merging import merged
from softprompt.studies.runs import run_hash

SHARED: dict[str, Any] = {
    "backbone": "smollm2-135m-instruct",
    "task": {"name": "text-classification", "template": "{text}:", "labels": {"neg": " bad", "pos": " good"}},
    "data": {"train": "a.csv", "validation": "b.csv", "test": "c.csv"},
    "recipe": {"steps": 20},
}
METHODS = {"axes": {"method": ["zero-shot", "prompt-tuning"]}}


def nothing(run_id: str) -> None:
    return None


def runs_of(**values: Any) -> list[Any]:
    return list(plan(parse_study({**SHARED, **values}), nothing).runs)


def test_every_combination_of_the_axes_is_run_with_every_seed() -> None:
    runs = runs_of(
        axes={"method": ["zero-shot", "prompt-tuning"], "recipe.steps": [5, 10, 20]}, seeds=[0, 1, 2]
    )
    assert len({run.id for run in runs}) == 2 * 3 * 3
    assert {run.values["recipe"]["steps"] for run in runs} == {5, 10, 20}
    assert all(run.stage == "final" for run in runs)


def test_an_option_by_name_changes_several_keys() -> None:
    axes = {
        "method": ["prompt-tuning"],
        "domain": {
            "hotels": {"data.test": "hotels.csv", "recipe.batch_size": 4},
            "short": {"task.template": "{text}?", "seeds": [7]},
        },
    }
    hotels, short = runs_of(axes=axes)
    assert hotels.values["data"]["test"]["source"] == "hotels.csv"
    assert hotels.values["recipe"]["batch_size"] == 4
    assert hotels.values["recipe"]["steps"] == 20
    assert short.values["task"]["template"] == "{text}?"
    assert short.values["task"]["labels"] == hotels.values["task"]["labels"]
    assert short.seed == 7


def test_a_new_method_takes_nothing_over_from_the_old_one() -> None:
    values = merged(
        {"method": {"name": "prompt-tuning", "length": 5}}, {"method": {"name": "lora", "rank": 2}}
    )
    assert values["method"] == {"name": "lora", "rank": 2}
    assert merged(values, {"method.rank": 3})["method"] == {"name": "lora", "rank": 3}


def test_named_runs_stand_beside_the_grid() -> None:
    *grid, own = runs_of(**METHODS, runs={"long": {"method": {"name": "prompt-tuning", "length": 50}}})
    assert len(grid) == 2
    assert own.cell == {"method": "long"}
    assert own.values["method"]["length"] == 50


def test_the_same_settings_are_one_run_however_they_are_written() -> None:
    [first] = runs_of(method={"name": "prompt-tuning"})
    [second] = runs_of(method={"name": "prompt-tuning", "length": 20}, recipe={"steps": 20, "batch_size": 16})
    assert first.id == second.id


def test_the_device_is_no_part_of_a_runs_name() -> None:
    [plain] = runs_of(method="prompt-tuning")
    [placed] = runs_of(method="prompt-tuning", backbone={"name": SHARED["backbone"], "device": "cpu"})
    assert plain.id == placed.id
    [other] = runs_of(method="prompt-tuning", backbone={"name": SHARED["backbone"], "dtype": "float32"})
    assert run_hash(other.values) != run_hash(plain.values)


def test_runs_on_one_backbone_follow_each_other() -> None:
    axes = {"method": ["zero-shot", "prompt-tuning"], "backbone": ["small", "large"]}
    names = [run.values["backbone"]["name"] for run in runs_of(axes=axes)]
    assert names == ["small", "small", "large", "large"]


def test_a_search_never_sees_test_data_and_final_runs_wait_for_it() -> None:
    study = parse_study(
        {
            **SHARED,
            **METHODS,
            "seeds": [0, 1],
            "select": {"recipe.learning_rate": [0.1, 0.2]},
            "protocol": {"name": "domain-shift", "domains": {"d": "d.csv"}},
        }
    )
    found = plan(study, nothing)
    assert [run.stage for run in found.runs] == ["search"] * 4
    assert found.later == 4
    assert all("test" not in run.values["data"] and "domains" not in run.values for run in found.runs)
    assert {run.seed for run in found.runs} == {1000}


def validated(value: float, status: Any = "finished") -> Outcome:
    return Outcome(status, {"main_metric": "accuracy", "metrics": {"validation": {"accuracy": value}}})


def test_final_runs_have_the_setting_that_validation_prefers_and_fresh_seeds() -> None:
    study = parse_study(
        {**SHARED, **METHODS, "seeds": [0, 1], "select": {"recipe.learning_rate": [0.1, 0.2, 0.3]}}
    )
    searched = plan(study, nothing).runs
    scores = dict(zip([run.id for run in searched], [0.5, 0.7, 0.7, 0.9, 0.8, 0.1], strict=True))

    def outcomes(run_id: str) -> Outcome | None:
        return validated(scores[run_id]) if run_id in scores else None

    finals = [run for run in plan(study, outcomes).runs if run.stage == "final"]
    chosen = {(run.cell["method"], run.seed): run.values["recipe"]["learning_rate"] for run in finals}
    assert chosen == {  # the first of equals
        ("zero-shot", 0): 0.2,
        ("zero-shot", 1): 0.2,
        ("prompt-tuning", 0): 0.1,
        ("prompt-tuning", 1): 0.1,
    }
    assert all(run.values["data"]["test"]["source"] == "c.csv" for run in finals)


def test_a_setting_that_diverged_or_failed_is_not_chosen() -> None:
    study = parse_study({**SHARED, "method": "prompt-tuning", "select": {"recipe.learning_rate": [0.1, 0.2]}})
    first, second = plan(study, nothing).runs
    found = plan(study, {first.id: Outcome("diverged"), second.id: validated(0.1)}.get)
    assert found.runs[-1].values["recipe"]["learning_rate"] == 0.2
    none = plan(study, {first.id: Outcome("diverged"), second.id: Outcome("failed")}.get)
    assert none.stuck == ["the study: no setting was run to its end, so none could be chosen"]


def test_an_option_has_a_search_of_its_own() -> None:
    study = parse_study(
        {
            **SHARED,
            "axes": {
                "method": {
                    "none": {"method": "zero-shot", "select": {}},
                    "ours": {"method": "prompt-tuning"},
                    "lora": {"method": "lora", "select": {"method.rank": [2, 4, 8]}},
                }
            },
            "select": {"method.length": [5, 10]},
        }
    )
    stages = [(run.cell["method"], run.stage) for run in plan(study, nothing).runs]
    assert stages == [("none", "final"), *[("ours", "search")] * 2, *[("lora", "search")] * 3]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"axis": {}}, "unknown key 'axis'; did you mean 'axes'"),
        ({"seed": [0]}, "unknown key 'seed'; did you mean 'seeds'"),
        ({"method": ["zero-shot", "lora"]}, r"put it under axes, as in axes: \{method: \[...\]\}"),
        ({"axes": {"methd": ["zero-shot"]}}, "unknown key 'axes.methd'; did you mean 'method'"),
        ({"axes": {"method": "lora"}}, "expected a list of values or options by name"),
        ({"axes": {"method": ["lora", "lora"]}}, "two values with the same name"),
        ({"axes": {"method": {"a": {"metod": "lora"}}}}, "unknown key 'axes.method.a.metod'"),
        ({"method": "lora", "seeds": 3}, "seeds is 3, expected a list"),
        ({"method": "lora", "seeds": [1, 1]}, "different whole numbers"),
        (
            {"method": "lora", "select": {"recipe.steps": 5}},
            "select.recipe.steps is 5, expected a list, or a range",
        ),
        ({"method": "lora", "select": {"recipe.steps": {"low": 5, "high": 2}}}, "low must be less"),
        (
            {"method": "lora", "select": {"recipe.steps": [5]}, "seeds": [1000]},
            "a final run needs a fresh seed",
        ),
        ({"method": "lora", "search": {"by": "luck"}}, "search.by"),
        ({"axes": {"method": ["lora"]}, "compare": "seeds"}, r"expected one of the axes \['method'\]"),
        ({"method": "lora", "keep_prompts": 1}, "expected true or false"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_study({**SHARED, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"axes": {"method": ["zero-shot", "prompt-tunin"]}},
            "method prompt-tunin: method.name is 'prompt-tunin'",
        ),
        (
            {"axes": {"method": ["zero-shot"], "method.length": [3]}},
            "zero-shot, method.length 3: unknown key",
        ),
        ({"method": "lora", "axes": {"recipe.steps": [0]}}, "recipe.steps 0: recipe.steps: Input should be"),
        (
            {"method": "lora", "protocol": {"name": "few-shot", "shots": 0}},
            "protocol.shots: Input should be greater than or equal to 1; found 0",
        ),
        (
            {"method": "lora", "protocol": {"name": "domain-shift", "domains": {"d": {"sorce": "x"}}}},
            "protocol.domains.d: unknown key 'sorce'; did you mean 'source'",
        ),
        (
            {"method": "lora", "data": {"train": "a"}, "select": {"recipe.steps": [1]}},
            "data.validation is missing",
        ),
        ({"method": "lora", "select": {"recipe.steps": {"low": 1, "high": 2}}}, "needs search"),
    ],
)
def test_runs_that_do_not_fit_are_found_before_the_first_is_made(
    values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        plan(parse_study({**SHARED, **values}), nothing)


def test_full_is_merged_over_the_study(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        """
backbone: small
task: {name: text-classification, template: "{text}:", labels: {a: " a", b: " b"}}
data: {train: a.csv}
recipe: {steps: 5, batch_size: 2}
axes: {method: [zero-shot, prompt-tuning], recipe.steps: [1, 2]}
full: {backbone: large, recipe: {steps: 500}, axes: {recipe.steps: [100]}, seeds: [0, 1, 2]}
"""
    )
    assert len(plan(read_study(file), nothing).runs) == 4
    runs = plan(read_study(file, full=True), nothing).runs
    assert len(runs) == 6
    assert {run.values["recipe"]["steps"] for run in runs} == {100}
    assert {run.values["recipe"]["batch_size"] for run in runs} == {2}
    assert {run.values["backbone"]["name"] for run in runs} == {"large"}


def test_a_missing_or_broken_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no study .*none.yaml"):
        read_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"bad\.yaml is no valid YAML"):
        read_study(tmp_path / "bad.yaml")
    (tmp_path / "seeds.yaml").write_text("backbone: x\nseeds: x\n")
    with pytest.raises(ValueError, match=r"seeds\.yaml, line 2: seeds is 'x', expected a list"):
        read_study(tmp_path / "seeds.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(ValueError, match=r"list.yaml: a study is \['a'\], expected keys and values"):
        read_study(tmp_path / "list.yaml")


def test_the_name_of_a_run_stays_what_it_was() -> None:
    """A run that was made by an older version must not be made again because a setting was added."""
    [run] = runs_of(method={"name": "prompt-tuning", "length": 20}, domains={"d": "d.csv"})
    assert run.id == "seed0-50517bef4064"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": 2}, "needs a head over all classes"),
        ({"tasks": 0}, "protocol.tasks: Input should be greater than or equal to 1"),
        ({"tasks": 2, "shots": 4}, "unknown key 'protocol.shots'"),
    ],
)
def test_classes_in_tasks_need_a_head_and_all_rows(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        runs_of(axes={"method": ["prompt-tuning"]}, protocol={"name": "class-incremental", **changes})
