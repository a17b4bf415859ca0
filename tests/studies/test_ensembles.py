"""Prompts of a line's seeds judged together: once, when all are there, and shown in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.studies import StudyFolder, Worker, parse_study
from softprompt.studies.report import write_report
from softprompt.studies.results import read_results
from softprompt.studies.tables import ensemble_table
from tests.cli.runs import as_json
from tests.studies.small import write_study

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


@pytest.mark.slow
def test_the_prompts_of_all_seeds_are_judged_together_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, out = write_study(tmp_path / "study.yaml", ensembles=True), tmp_path / "out"
    as_json("compare", study, "-o", out, "--quiet")
    folder = StudyFolder(out)
    results = read_results(folder)
    [(what, facts)] = results.ensembles  # zero-shot has nothing to put together
    members = results.of(what)
    assert facts["members"] == [result.run.id for result in members]
    scores = [result.score("test") for result in members]
    assert facts["best"] == max(scores)  # type: ignore[type-var]
    assert facts["mean"] == pytest.approx(results.mean(what))
    backbone = sp.load_backbone(str(tmp_path / "backbone"), dtype="float32", device="cpu")
    prompts = [sp.load(folder.run(result.run.id) / "prompt", backbone) for result in members]
    found = sp.PromptEnsemble(prompts).evaluate(str(tmp_path / "rows.jsonl"))
    assert {rule: facts[rule] for rule in found.ensemble} == {
        rule: metrics["accuracy"] for rule, metrics in found.ensemble.items()
    }

    def refuse(*_: Any) -> None:
        raise AssertionError("an ensemble that is recorded was judged again")

    [file] = (out / "ensembles").iterdir()
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "as_ensemble", refuse)
        as_json("compare", study, "-o", out, "--quiet")
    written = file.read_text()
    file.write_text(written[:20])  # damaged: it is judged anew
    as_json("compare", study, "-o", out, "--quiet")
    assert file.read_text() == written
    heads, rows = ensemble_table(read_results(folder))
    assert rows[0][:3] == [what, "2", "accuracy"]
    assert len(heads) == len(rows[0])
    names = {path.name for path in write_report(folder, tmp_path / "report")}
    assert "ensembles.md" in names
    assert ">Ensembles of seeds</h2>" in (tmp_path / "report/index.html").read_text()


def test_ensembles_need_kept_prompts() -> None:
    with pytest.raises(ValueError, match="an ensemble needs the saved prompts"):
        parse_study({"ensembles": True, "keep_prompts": False})
