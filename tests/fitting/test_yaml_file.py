"""YAML written by hand: what would be lost or misread without a word is an error with its line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.fitting.run_config import override, parse_config, read_config
from softprompt.fitting.yaml_file import parse_document, read_yaml
from softprompt.studies import read_study

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
GOOD = """backbone: x
task: {name: text-classification, template: "{text}", labels: {a: " a", b: " b"}}
method: prompt-tuning
data: {train: r.csv}
recipe:
  steps: 10
"""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "recipe: {steps: 100}\nrecipe: {batch_size: 4}\n",
            "line 2: the key 'recipe' stands twice, first in line 1",
        ),
        ("labels: {pos: a, pos: b}", "line 1: the key 'pos' stands twice"),
        ("a: 1\nno: 2", "line 2: YAML reads a key as False"),
        ("a:\n\tb: 1", "no valid YAML: line 2, .*a tab"),
        ("a: [", "no valid YAML: line 1"),
        ("a: 1\nb: \x01", r"no valid YAML: line 2: the character '\\x01'"),
        ("a\n---\nb", "another document"),
        ("a: " + "[" * 3000, "nested more than 50 deep"),
        ("a: &a {b: *a}", "an alias stands in the very value"),
        (BOMB, "more than 200000 values"),
        ("# " + "x" * 1_000_001, "1000003 characters"),
        ("? [a]\n: b", "line 1: a list or a mapping stands where a key"),
        ("a: !!set {b, c}", "the tag .* is not known"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: 2024-13-45", "'2024-13-45' cannot be read"),
        ("a: !!int b", "'b' cannot be read"),
        ("a: !!binary eA==", "kind bytes"),
        ("a: 0x" + "f" * 5000, "too large a number"),
        ("<<: 3", "has none"),
    ],
)
def test_what_would_be_lost_or_misread_is_an_error_with_its_line(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=rf"^run\.yaml.*{told}") as error:
        parse_document(text, "run.yaml")
    assert len(str(error.value)) < 500


def test_aliases_and_merged_keys_are_values_of_their_own() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}"
    document = parse_document(text, "run.yaml")
    assert document.values == {"a": {"x": 1, "y": [2]}, "b": {"x": 1, "y": [2]}, "c": {"x": 3, "y": [2]}}
    assert document.values["a"]["y"] is not document.values["b"]["y"]
    assert document.line("c.x") == 3
    assert document.line("c.z") == 3
    assert document.line("d") is None
    assert parse_document("", "run.yaml").values is None


@pytest.mark.parametrize("read", [read_config, read_study, read_yaml])
def test_a_file_in_another_encoding_is_named(read: Any, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for content, told in (
        (GOOD.encode("utf-16"), "UTF-16"),
        (GOOD.replace("r.csv", "é.csv").encode("cp1252"), "not UTF-8: byte 0xe9 in line 4"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"run\.yaml is.*{told}"):
            read(file)


def test_a_byte_order_mark_of_utf_8_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(GOOD.encode("utf-8-sig"))
    assert read_config(file).recipe.steps == 10


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps: 10", "steps: 0", r"line 6: recipe\.steps: .*; found 0"),
        ("steps: 10", "stepps: 10", "line 6: unknown key 'recipe.stepps'"),
        ("steps: 10", "steps: yes", "line 5: recipe: steps is True, expected a number"),
        ("steps: 10", "warmup: true", "line 5: recipe: warmup is True, expected a number"),
        (
            "method: prompt-tuning",
            "method: {name: prompt-tuning, length: on}",
            "line 3: method: length is True",
        ),
        ("method: prompt-tuning", "method: {name: [prompt-tuning]}", "line 3: method.name is"),
        ("method: prompt-tuning", "method: [prompt-tuning]", "line 3: method is"),
        ('a: " a"', "a: yes", r"line 2: task\.labels\.a: .*; found True; YAML reads yes, .*: put quotes"),
        ('a: " a"', "a: 1", r"line 2: task\.labels\.a: .*; found 1; YAML reads it as a number: put quotes"),
        ('a: " a"', "a: 2024-01-01", "YAML reads it as a date"),
        ("{train: r.csv}", "{train: {source: r.csv, limit: yes}}", "limit is True"),
        ("{train: r.csv}", "[r.csv]", "line 4: data is"),
        ("recipe:", "seed: -1\nrecipe:", "line 5: seed: .*; found -1"),
        (
            "backbone: x",
            "backbone: {name: x, trust_remote_code: 'no'}",
            r"line 1: backbone\.trust_remote_code: .*; found 'no'",
        ),
    ],
)
def test_a_setting_that_does_not_fit_is_told_with_its_line_and_without_pydantic(
    old: str, new: str, told: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"run\.yaml, {told}" if "line" in told else told) as error:
        read_config(file)
    assert "json-or-python" not in str(error.value)
    assert "function-" not in str(error.value)


def test_a_line_is_not_named_for_a_setting_that_an_override_gave(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(GOOD, encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.yaml: recipe\.steps"):
        read_config(file, ["recipe.steps=0"])


def test_errors_about_long_values_are_short() -> None:
    values = {"backbone": "m", "method": "zero-shot", "data": {"train": "x.csv"}}
    task = {"name": "text-classification", "template": "{text}", "labels": {str(i): i for i in range(5000)}}
    with pytest.raises(ValueError, match=r"task\.labels\.0") as error:
        parse_config({**values, "task": task})
    assert len(str(error.value)) < 2000
    with pytest.raises(ValueError, match="which is not known") as error:
        parse_config({**values, "task": task | {"name": ["x" * 10_000]}})
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (" fine", " fine"),
        ("fine ", "fine "),
        ('" fine"', " fine"),
        (" 5", 5),
        ("", None),
        (" {a: b}", {"a": "b"}),
    ],
)
def test_an_override_keeps_the_blanks_around_a_text(given: str, expected: Any) -> None:
    assert (
        override({"task": {"labels": {}}}, [f"task.labels.pos={given}"])["task"]["labels"]["pos"] == expected
    )


@pytest.mark.parametrize(
    "setting", ["steps", "patience", "batch_size", "evaluate_every", "warmup", "clip_norm"]
)
def test_a_truth_value_is_no_number_of_a_recipe(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} is True, expected a number"):
        sp.Recipe(**{setting: True})  # type: ignore[arg-type]


def test_a_truth_value_is_no_number_of_a_method_or_task() -> None:
    with pytest.raises(ValueError, match="length is True"):
        sp.PromptTuning(length=True)
    with pytest.raises(ValueError, match="length is True"):
        sp.PromptTuning(True)
    with pytest.raises(ValueError, match="max_new_tokens is True"):
        sp.TextGeneration("{text}", max_new_tokens=True)
    with pytest.raises(ValueError, match="betas is"):
        sp.Recipe(betas=(0.9, False))
    assert sp.VPT(length=2, deep=False).deep is False
    assert sp.Recipe(compile=True).compile is True
