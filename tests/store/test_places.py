"""Where a backbone lies, told without the name of the machine, of its user or of its folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from softprompt.store import load, save
from softprompt.store.places import from_home, portable, resolved, shown_name, to_home, without_folders
from tests.store.samples import sample


def test_a_local_backbone_is_found_from_the_folder_of_its_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    (tmp_path / "models" / "llama").mkdir(parents=True)
    name = str(tmp_path / "models" / "llama")
    saved = dataclasses.replace(sample(), backbone=dataclasses.replace(sample().backbone, name=name))
    save(tmp_path / "runs" / "mood", saved)
    for file in (tmp_path / "runs" / "mood").iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file
    assert '"name": "../../models/llama"' in (tmp_path / "runs" / "mood" / "prompt.json").read_text()
    assert load(tmp_path / "runs" / "mood") == saved
    (tmp_path / "runs").rename(tmp_path / "other")  # on this machine or another, with the models beside it
    assert load(tmp_path / "other" / "mood") == saved


def test_what_lies_in_the_home_of_a_user_is_found_there_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "erika"))
    (tmp_path / "erika" / "models" / "llama").mkdir(parents=True)
    name = str(tmp_path / "erika" / "models" / "llama")
    assert portable(name, tmp_path / "anywhere") == "~/models/llama"
    assert resolved("~/models/llama", tmp_path / "anywhere") == name


@pytest.mark.parametrize("name", ["smollm2-135m", "org/model", "models/llama", "/no/such/folder", "."])
def test_other_names_stay_as_they_are(tmp_path: Path, name: str) -> None:
    assert portable(name, tmp_path) == name
    if name != ".":
        assert resolved(name, tmp_path) == name


def test_paths_that_are_there_begin_at_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.csv").write_text("text\n")
    values = {
        "data": {"train": str(tmp_path / "rows.csv"), "only": [3, None, str(tmp_path / "gone.csv")]},
        "labels": {"a": "~/gone", "b": "a\0b", "c": f"{tmp_path}x"},
    }
    told = from_home(values)
    assert told == {**values, "data": {"train": "~/rows.csv", "only": [3, None, str(tmp_path / "gone.csv")]}}
    assert to_home(told) == values


def test_names_are_shown_and_tracebacks_kept_without_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/erika")
    assert shown_name("/home/erika/models/llama/") == "llama"
    assert shown_name("org/model") == "org/model"
    told = (
        '  File "/home/erika/venv/lib/python3.11/site-packages/torch/nn/x.py", line 3, in y\n'
        '  File "/home/erika/src/softprompt/fitting/one.py", line 8, in fit\n'
        '  File "/home/erika/mine.py", line 8, in <module>\n'
        "OSError: /home/erika/rows.csv"
    )
    assert without_folders(told) == (
        '  File "torch/nn/x.py", line 3, in y\n'
        '  File "softprompt/fitting/one.py", line 8, in fit\n'
        '  File "mine.py", line 8, in <module>\n'
        "OSError: ~/rows.csv"
    )
