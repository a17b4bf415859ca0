"""Protocols in a study's file and the older keys for them: the same runs with the same ids."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from softprompt.errors import SoftpromptWarning
from softprompt.studies import StudyFolder, parse_study, plan, read_study
from softprompt.studies.run_settings import parse_run

WORDS = {"name": "text-classification", "template": "{text}:", "labels": {"a": " a", "b": " b"}}
HEAD = {"name": "sequence-classification", "template": "{text}", "labels": ["a", "b", "c", "d"]}
NAMES = {"name": "image-text-classification", "template": "a {}.", "labels": ["a", "b", "c", "d"]}
FAR = {"far": {"source": "far.csv", "limit": 3}, "near": "near.csv"}
MEMORY = {"size": 5, "kind": "reservoir"}
SAME: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (WORDS, {"shots": 4}, {"protocol": {"name": "few-shot", "shots": 4}}),
    (WORDS, {}, {"protocol": "plain"}),
    (WORDS, {"base_to_new": False, "shots": None, "domains": {}}, {}),
    (WORDS, {"domains": FAR}, {"protocol": {"name": "domain-shift", "domains": FAR}}),
    (WORDS, {"domains": FAR, "shots": 2}, {"protocol": {"name": "domain-shift", "domains": FAR, "shots": 2}}),
    (NAMES, {"base_to_new": True}, {"protocol": "base-to-new"}),
    (NAMES, {"base_to_new": True, "shots": 16}, {"protocol": {"name": "base-to-new", "shots": 16}}),
    (HEAD, {"class_tasks": 2}, {"protocol": {"name": "class-incremental", "tasks": 2}}),
    (
        HEAD,
        {"class_tasks": 2, "class_logits": "all", "class_order": "natural", "class_answers": "seen"},
        {
            "protocol": {
                "name": "class-incremental",
                "tasks": 2,
                "logits": "all",
                "order": "natural",
                "answers": "seen",
            }
        },
    ),
    (
        HEAD,
        {"class_tasks": 2, "class_logits": "present", "rehearsal": MEMORY},
        {"protocol": {"name": "class-incremental", "tasks": 2, "rehearsal": MEMORY}},
    ),
]


def values(task: dict[str, Any], **more: Any) -> dict[str, Any]:
    data = {"train": "train.csv", "test": "test.csv"}
    return {"backbone": "small", "task": task, "method": "linear-probe", "data": data, **more}


def ids(study: dict[str, Any]) -> list[str]:
    return [run.id for run in plan(parse_study(study), lambda run: None).runs]


@pytest.mark.parametrize(("task", "older", "newer"), SAME)
def test_both_forms_are_the_same_run_with_the_same_name(
    task: dict[str, Any], older: dict[str, Any], newer: dict[str, Any]
) -> None:
    old, new = values(task, **older), values(task, **newer)
    assert ids(old) == ids(new)
    written = parse_run(new).as_dict()
    assert written == parse_run(old).as_dict()
    assert "protocol" not in written  # older versions read it, too
    assert parse_run(written) == parse_run(new)


def test_ids_are_what_they_were_before_there_were_protocols() -> None:
    [plain] = ids(values(WORDS, method="prompt-tuning"))
    [few] = ids(values(WORDS, method="prompt-tuning", protocol={"name": "few-shot", "shots": 4}))
    [tasks] = ids(values(HEAD, protocol={"name": "class-incremental", "tasks": 2}))
    assert [plain, few, tasks] == IDS


IDS = ["seed0-84e2a27c84f8", "seed0-f52072d98db0", "seed0-5fe3efc52f9e"]


def test_axes_of_a_setting_give_the_same_names() -> None:
    old = values(WORDS, method="prompt-tuning", axes={"shots": [4, 8]}, seeds=[0, 1])
    new = values(WORDS, method="prompt-tuning", axes={"protocol.shots": [4, 8]}, seeds=[0, 1])
    assert ids(old) == ids(new | {"protocol": "few-shot"})
    options = {"few": {"shots": 4}, "all": {}}
    named = {"few": {"protocol": {"name": "few-shot", "shots": 4}}, "all": {}}
    base = values(WORDS, method="prompt-tuning")
    assert ids(base | {"axes": {"rows": options}}) == ids(base | {"axes": {"rows": named}})


def test_a_protocol_without_older_keys_is_part_of_the_name() -> None:
    base = values(NAMES, method="coop")
    adapted = base | {"protocol": {"name": "domain-adaptation", "target": "photos.csv"}}
    later = base | {"protocol": {"name": "domain-adaptation", "target": "photos.csv", "target_weight": 1.0}}
    assert ids(adapted) == ids(later) != ids(base)
    assert parse_run(parse_run(adapted).as_dict()) == parse_run(adapted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_tasks": 2, "shots": 4}, "class_tasks is there together with shots"),
        ({"base_to_new": True, "domains": FAR}, "base_to_new is there together with domains"),
        ({"base_to_new": "yes"}, "base_to_new is 'yes', expected true or false"),
        ({"rehearsal": MEMORY}, "rehearsal is there without class_tasks"),
        ({"class_logits": "all"}, "class_logits is there without class_tasks"),
        ({"class_tasks": 0}, "class_tasks: Input should be greater than or equal to 1; found 0"),
        ({"class_tasks": 2, "class_order": "drawn"}, "class_order: Input should be 'seed' or 'natural'"),
        ({"shots": 4, "protocol": "base-to-new"}, "shots stand beside protocol: base-to-new"),
        ({"protocol": 3}, "protocol is 3, expected keys and values"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        parse_run(values(HEAD, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"shots": 4}, "shots is now protocol: {name: few-shot, shots: ...}"),
        ({"axes": {"class_tasks": [1, 2]}}, "class_tasks is now protocol: {name: class-incremental, tasks"),
        ({"axes": {"a": {"x": {"base_to_new": True}, "y": {}}}}, "base_to_new is now protocol: {name: base"),
        ({"runs": {"one": {"class_logits": "all"}}}, "class_logits is now protocol: {name: class"),
        ({"full": {"domains": FAR}}, "domains is now protocol: {name: domain-shift, domains: ...}"),
    ],
)
def test_a_file_with_the_older_keys_is_told_the_new_form(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values(HEAD, **changes)))
    with pytest.warns(SoftpromptWarning, match=re.escape(told)):
        read_study(file)


def test_the_folder_of_a_study_that_was_begun_with_the_older_keys_is_read_without_a_word(
    tmp_path: Path,
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values(WORDS, method="prompt-tuning", shots=4)))
    folder = StudyFolder(tmp_path)
    [run] = plan(folder.study(), folder.outcome).runs
    folder.begin_run(run)
    assert yaml.safe_load((folder.run(run.id) / "config.yaml").read_text())["shots"] == 4
    assert folder.check(run.id) is None  # sound, and not ended


def test_settings_of_methods_are_no_keys_of_protocols(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(values(WORDS, method={"name": "few-shot", "shots": 8})))
    assert read_study(file).shared["method"]["shots"] == 8
