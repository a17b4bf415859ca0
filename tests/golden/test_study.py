"""A study that was begun at commit 3cfa151 can be finished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from softprompt import studies
from tests.golden import runs
from tests.golden.cases import HERE, STUDY, write_study_rows

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


@pytest.mark.slow
def test_it_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = json.loads((HERE / "study.json").read_text(encoding="utf-8"))
    folder = studies.StudyFolder(shutil.copytree(HERE / "study", tmp_path / "study"))
    write_study_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = folder.study()
    assert study.values == studies.parse_study(STUDY).values
    files = {file: file.read_bytes() for id_ in known["finished"] for file in files_of(folder.run(id_))}

    told = runs.Told()
    found = studies.conduct(study, folder, runs.worker(), show=told)

    assert [run.id for run in found.runs] == known["ids"]
    assert {place.name for place in (folder.path / "runs").iterdir()} == set(known["ids"])
    assert not (folder.path / "set-aside").exists()
    # What had ended was left alone, what was begun went on, the rest was made.
    assert set(told.begun) == set(known["ids"]) - set(known["finished"])
    assert files == {file: file.read_bytes() for file in files}
    for id_, seen in told.begun.items():
        if id_ not in known["begun"]:
            assert set(seen.begun) == {0}
        elif id_.startswith("tasks"):  # of two tasks the first had been learned
            assert seen.begun == [0]
            assert seen.steps == list(range(1, 7))
        else:
            assert seen.begun == [3]
            assert seen.steps == [4, 5, 6]
    for id_, metrics in known["results"].items():
        outcome = folder.outcome(id_)
        assert outcome is not None
        assert outcome.status == "finished"
        assert outcome.facts["metrics"].keys() == metrics.keys()
        losses, expected = [record["loss"] for record in folder.history(id_)], known["losses"][id_]
        assert len(losses) == len(expected)
        # A prefix that an MLP makes in float32 soon goes other ways on another processor.
        compared = slice(None) if id_ in known["begun"] else slice(1)
        assert losses[compared] == pytest.approx(expected[compared], rel=1e-3)


def files_of(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.rglob("*")) if file.is_file()]
