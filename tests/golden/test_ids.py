"""Run ids are the same as at commit 3cfa151, so begun studies, run folders and checkpoints are found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from softprompt.studies.run_settings import parse_run
from softprompt.studies.runs import run_hash
from tests.golden import runs
from tests.golden.cases import CASES, HERE, RUNS

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / name).read_text(encoding="utf-8")))


@pytest.mark.slow
@pytest.mark.parametrize("file", runs.study_files(), ids=lambda file: file.stem)
def test_the_runs_of_a_study_have_their_ids(file: Path) -> None:
    expected = read("run-ids.json")[file.name]
    assert runs.run_ids(file, full=False) == expected["small"]
    if "full" in expected:
        assert runs.run_ids(file, full=True) == expected["full"]


@pytest.mark.slow
@pytest.mark.parametrize("file", runs.study_files(), ids=lambda file: file.stem)
def test_the_ready_study_of_today_has_the_same_runs(file: Path) -> None:
    """The copies beside this file are as they were; the studies that people run have been written in new words."""
    today = HERE.parents[1] / "studies" / file.name
    expected = read("run-ids.json")[file.name]
    assert runs.run_ids(today, full=False) == expected["small"]
    if "full" in expected:
        assert runs.run_ids(today, full=True) == expected["full"]


@pytest.mark.parametrize("name", RUNS)
def test_a_config_comes_to_the_same_run(name: str) -> None:
    expected = read("runs.json")[name]
    found = parse_run(RUNS[name]).as_dict()
    assert found == expected["values"]
    assert run_hash(found) == expected["hash"]
    assert parse_run(expected["values"]).as_dict() == found


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_says_the_same_of_its_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.trained(CASES[name], tmp_path, runs.Seen(1))
    found, expected = runs.checkpoint_identity(tmp_path), read("identities.json")[name]
    # In a checkpoint what is None and what is missing are one.
    assert without_nothing(found) == without_nothing(expected)


def without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_nothing(item) for key, item in value.items() if item is not None}
    return value
