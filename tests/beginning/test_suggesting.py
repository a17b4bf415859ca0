"""What is tried within the time, what is recommended and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import softprompt as sp
from softprompt.beginning.decisions import Asked
from softprompt.beginning.differing import interval_of, interval_of_difference
from softprompt.beginning.suggesting import candidates_for
from tests.cli.runs import as_json, write_backbone


def test_an_interval_is_wilsons_and_a_difference_may_be_0() -> None:
    scores = [1.0] * 9 + [0.0]
    wilson = stats.binomtest(9, 10).proportion_ci(method="wilson")
    assert interval_of(scores) == (wilson.low, wilson.high)
    assert interval_of([0.5] * 4) == (0.5, 0.5)
    assert interval_of_difference([1.0] * 10, scores).low == 0
    assert interval_of_difference([1.0] * 40, [0.0] * 20 + [1.0] * 20).low > 0.2
    noise = np.random.default_rng(1).random(200)
    low, high = interval_of_difference(list(noise + 0.1), list(noise))
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(0.1)


def test_what_is_tried_depends_on_the_answer() -> None:
    methods = ["zero-shot", "few-shot", "linear-probe", "prompt-tuning", "p-tuning-v2", "lora"]
    asked = Asked("classification", ["text"], "label", ["a", "b"])
    found, _ = candidates_for(asked, None)
    assert [one.method for one in found] == methods
    found, not_tried = candidates_for(asked, "minilm-l6")
    assert [one.method for one in found] == methods[2:]
    assert set(not_tried) == {"zero-shot", "few-shot"}
    found, not_tried = candidates_for(Asked("generation", ["prompt"], "answer"), None)
    assert "linear-probe" in not_tried


@pytest.mark.slow
def test_methods_are_compared_and_the_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_backbone(tmp_path / "backbone")
    lines = [f"the {t} is {w} {i},{w}" for i in range(6) for t in ("film", "book") for w in ("good", "bad")]
    Path("moods.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    told: list[str] = []
    found = sp.suggest("moods.csv", minutes=0.02, backbone="backbone", on_candidate=told.append)
    assert found.tried[0].candidate.method == "zero-shot"
    assert len(found.tried) + len(found.not_tried) == 6
    assert len(told) >= len(found.tried)
    assert found.recommended in found.tried
    assert found.recommended.candidate.method in found.reason
    assert found.commonest == 0.5
    hurried = sp.suggest("moods.csv", minutes=1e-6, backbone="backbone")  # no machine is quick enough for all
    assert hurried.not_tried
    values = as_json("suggest", "moods.csv", "--minutes", "0.01", "--backbone", "backbone")
    assert values["recommended"] in [one["method"] for one in values["tried"]]
    assert values["next"].startswith("softprompt init moods.csv --method ")


def test_rows_without_a_score_of_their_own_are_refused(tmp_path: Path) -> None:
    lines = [f"text number {i},{i / 7:.2f}" for i in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["text,score", *lines]), encoding="utf-8")
    with pytest.raises(ValueError, match="tasks that choose labels or write texts, and this is regression"):
        sp.suggest(str(tmp_path / "a.csv"))
