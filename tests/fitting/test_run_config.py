"""The config of a run: short forms, overrides, and errors that name the nearest key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.fitting.run_config import SourceConfig, differences, override, parse_config, read_config
from softprompt.fitting.sources import source_rows
from softprompt.prompts import PromptTuning

MINIMAL: dict[str, Any] = {
    "backbone": "smollm2-135m-instruct",
    "task": {"name": "text-classification", "template": "{text}:", "labels": {"neg": " bad", "pos": " good"}},
    "method": "prompt-tuning",
    "data": {"train": "multiemo-products", "validation": {"source": "rows.csv", "limit": 5}},
}


def changed(*overrides: str) -> dict[str, Any]:
    return override(MINIMAL, overrides)


def test_short_forms_mean_the_same_as_long_ones() -> None:
    config = parse_config(MINIMAL)
    assert config.backbone.name == "smollm2-135m-instruct"
    assert config.method == PromptTuning()
    assert config.data.train.source == "multiemo-products"
    assert config.data.validation is not None
    assert config.data.validation.limit == 5
    assert config.recipe.seed == 0


def test_a_config_written_out_reads_back_as_the_same_run() -> None:
    config = parse_config(changed("seed=3", "recipe.steps=7", "data.train.limit=9"))
    assert parse_config(config.as_dict()) == config


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("recipee.steps=3", "'recipee'; did you mean 'recipe'"),
        ("recipe.step=3", "'recipe.step'; did you mean 'steps'"),
        ("method.lenght=3", "'method.lenght'; did you mean 'length'"),
        ("task.tmplate=a", "'task.tmplate'; did you mean 'template'"),
        ("data.trian=rows.csv", "'data.trian'; did you mean 'train'"),
        ("data.train.limt=3", "'data.train.limt'; did you mean 'limit'"),
        ("backbone.dtyp=float32", "'backbone.dtyp'; did you mean 'dtype'"),
    ],
)
def test_an_unknown_key_at_any_level_names_the_nearest_known_one(key: str, named: str) -> None:
    with pytest.raises(ValueError, match="unknown key") as error:
        parse_config(changed(key))
    assert named in str(error.value)


def test_an_unknown_method_names_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match="did you mean 'prompt-tuning'"):
        parse_config(changed("method=promt-tuning"))


@pytest.mark.parametrize("key", ["backbone", "task", "method", "data"])
def test_a_part_that_is_missing_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}' is missing"):
        parse_config({name: value for name, value in MINIMAL.items() if name != key})


def test_a_value_that_does_not_fit_is_named_with_its_place() -> None:
    with pytest.raises(ValueError, match=r"recipe\.steps: .*greater than or equal to 1; found 0"):
        parse_config(changed("recipe.steps=0"))
    with pytest.raises(ValueError, match=r"^recipe: warmup takes 10 steps and steps is 5"):
        parse_config(changed("recipe.steps=5", "recipe.warmup=10"))


def test_an_override_is_read_as_yaml_and_leaves_the_original_alone() -> None:
    config = parse_config(changed("recipe.learning_rate=1e-3", "method.length=50", "recipe.patience=null"))
    assert config.recipe.learning_rate == 0.001
    assert config.method == PromptTuning(length=50)
    assert config.recipe.patience is None
    assert MINIMAL["method"] == "prompt-tuning"


@pytest.mark.parametrize("text", ["recipe.steps", "=3"])
def test_an_override_without_key_or_value_says_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected key=value"):
        changed(text)


def test_an_override_through_a_plain_value_is_refused() -> None:
    with pytest.raises(ValueError, match="'seed' is 3, which has no keys"):
        override(MINIMAL | {"seed": 3}, ["seed.low=1"])


def test_two_seeds_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match=r"seed is 1 and recipe\.seed is 2"):
        parse_config(changed("seed=1", "recipe.seed=2"))


def test_a_label_that_yaml_reads_as_false_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text('task: {labels: {no: " no", yes: " yes"}}', encoding="utf-8")
    with pytest.raises(ValueError, match="reads a key as False: put quotes"):
        read_config(path)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no config"):
        read_config(tmp_path / "none.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("a: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.yaml is no valid YAML"):
        read_config(path)


def test_differences_name_the_keys_by_their_path() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == {
        "a.c": (2, 3),
        "d": (None, 4),
    }


def test_a_backbone_takes_what_load_backbone_takes_and_defaults_are_not_written_out() -> None:
    backbone = {"name": "gpt", "dtype": "float32", "device": "cpu"}
    config = parse_config({**MINIMAL, "backbone": backbone})
    assert (
        config.as_dict()["backbone"] == backbone
    )  # a run written before there were more keys is the same run
    for key, value in (("revision", "v1"), ("prefix_lm", True), ("packed", False)):
        config = parse_config({**MINIMAL, "backbone": backbone | {key: value}})
        assert getattr(config.backbone, key) == value
        assert config.as_dict()["backbone"] == backbone | {key: value}
        assert parse_config(config.as_dict()) == config
    with pytest.raises(ValueError, match=r"unknown key 'backbone\.prefx_lm'; did you mean 'prefix_lm'"):
        parse_config({**MINIMAL, "backbone": backbone | {"prefx_lm": True}})


def test_parts_of_a_file_share_no_row_and_do_not_depend_on_its_order(tmp_path: Path) -> None:
    rows = [{"text": f"row {i % 50}", "label": "pos"} for i in range(80)]  # some of them twice
    names = ("train", "validation", "test")

    def parts(ordered: list[dict[str, str]]) -> dict[str, list[str]]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ordered))
        return {n: [r["text"] for r in source_rows(SourceConfig(str(file), part=n), n)] for n in names}

    found, again = parts(rows), parts(rows[::-1])
    assert {name: len(set(part)) for name, part in found.items()} == {"train": 40, "validation": 5, "test": 5}
    assert not set(found["train"]) & set(found["validation"]) | set(found["train"]) & set(found["test"])
    assert sum(map(len, found.values())) == 80
    assert {name: sorted(part) for name, part in found.items()} == {n: sorted(p) for n, p in again.items()}
    with pytest.raises(ValueError, match="3 different rows cannot be split"):
        parts(rows[:3])


def test_texts_are_cut_to_their_first_words(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": " one  two\nthree four", "label": 1}, {"text": "one", "label": 0}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    cut = source_rows(SourceConfig(str(file), words=3), "train")
    assert cut == [{"text": "one two three", "label": 1}, {"text": "one", "label": 0}]
    assert source_rows(SourceConfig(str(file)), "train") == rows


def test_a_source_says_how_its_text_is_encoded(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("text,label\nGefühl,pos\n".encode("cp1252"))
    assert source_rows(SourceConfig(str(file), encoding="cp1252"), "train") == [
        {"text": "Gefühl", "label": "pos"}
    ]
    with pytest.raises(ValueError, match="`encoding:` beside `source:`"):
        source_rows(SourceConfig(str(file)), "train")


def test_keys_of_a_source_that_say_nothing_do_not_rename_a_run() -> None:
    assert SourceConfig("rows.csv").as_dict() == {"source": "rows.csv", "split": None, "limit": None}
    assert SourceConfig("rows.csv", words=9).as_dict()["words"] == 9


def test_a_head_that_hears_nothing_is_the_run_that_it_was_before_heads_could_hear() -> None:
    task = {"name": "sequence-classification", "template": "{text}", "labels": ["a", "b"]}
    config = parse_config({**MINIMAL, "task": task})
    assert "media" not in config.as_dict()["task"]
    hears = parse_config({**MINIMAL, "task": {**task, "media": "audio"}})
    assert hears.as_dict()["task"]["media"] == "audio"
    assert parse_config(hears.as_dict()) == hears


def test_rows_can_be_those_with_wanted_values_alone(tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "kind": "abc"[i % 3], "size": i % 2} for i in range(12)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"source": str(file), "only": {"kind": ["a", "c"], "size": ["1"]}}
    config = parse_config({**MINIMAL, "data": {"train": {**given, "limit": 3}}})
    found = source_rows(config.data.train, "train")
    assert [(row["kind"], row["size"]) for row in found] == [(row["kind"], 1) for row in found]
    assert {row["kind"] for row in found} == {"a", "c"}
    assert len(found) == 3  # the limit counts what is left
    assert parse_config(json.loads(json.dumps(config.as_dict()))) == config
    assert "only" not in parse_config(MINIMAL).as_dict()["data"]["train"]
    for column, values, told in (("kinds", ["a"], "has no column 'kinds'"), ("kind", ["d"], "has 'd' in")):
        with pytest.raises(ValueError, match=told):
            source_rows(SourceConfig(str(file), only={column: values}), "train")  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [True, "caches/features"])
def test_a_cache_of_features_is_written_out_where_there_is_one(value: bool | str) -> None:
    config = parse_config({**MINIMAL, "cache_features": value})
    assert config.cache_features == value
    assert parse_config(config.as_dict()) == config
    assert "cache_features" not in parse_config(MINIMAL).as_dict()
    with pytest.raises(ValueError, match="cache_features is 3, expected true, false or a folder"):
        parse_config({**MINIMAL, "cache_features": 3})


def test_a_limit_can_draw_other_rows_and_keep_the_shares_of_labels(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"text": f"row {i}", "label": "rare" if i % 4 == 0 else "common"} for i in range(40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def drawn(**settings: Any) -> list[dict[str, Any]]:
        given = {"source": str(file), "limit": 8, **settings}
        config = parse_config({**MINIMAL, "data": {"train": given}})
        assert parse_config(json.loads(json.dumps(config.as_dict()))) == config
        return source_rows(config.data.train, "train")

    assert drawn(draw=1) == drawn(draw=1) != drawn() == drawn(draw=0)
    for draw in range(4):
        labels = [row["label"] for row in drawn(draw=draw, stratify="label")]
        assert labels.count("rare") == 2
    with pytest.raises(ValueError, match="limit is missing"):
        drawn(limit=None, draw=1)
    with pytest.raises(ValueError, match="has no column 'labels'"):
        drawn(stratify="labels")
