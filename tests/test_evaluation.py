"""Evaluation of very many rows, which are read and encoded some batches at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import softprompt as sp
from softprompt.data.indexed import FileRows
from tests.tiny.task import ROWS, TASK, tiny_backbone

METHOD = sp.PromptTuning(length=2)


@pytest.fixture
def tuned() -> sp.TunedPrompt:
    return sp.fit(tiny_backbone(), TASK, METHOD, ROWS, steps=1, progress=False)


def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softprompt.evaluation.MANY", 1)
    monkeypatch.setattr("softprompt.evaluation._BATCHES", 2)
    monkeypatch.setattr("softprompt.data.indexed._LARGE", 1)


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_many_rows_of_a_file_give_the_metrics_of_few(
    tuned: sp.TunedPrompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, *ROWS, ROWS[0]]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = tuned.evaluate(rows, batch_size=3)
    seen: list[Any] = []
    done: list[int] = []

    def surest(predictions: Any, given: Any) -> float:
        seen.append(given)
        return min(max(p.probabilities.values()) for p in predictions)

    few_are_many(monkeypatch)
    assert tuned.evaluate(str(path), batch_size=3, on_batch=done.append) == expected
    found = tuned.evaluate(str(path), batch_size=3, metrics={"surest": surest})
    assert found.pop("surest") >= 1 / len(TASK.labels)
    assert found == expected
    assert isinstance(seen[0], FileRows)  # nobody has made a list of them
    assert done[-1] == len(rows)
    assert len(done) > 1


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_wrong_row_among_many_is_named(
    tuned: sp.TunedPrompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_are_many(monkeypatch)
    rows: list[dict[str, Any]] = [dict(row) for row in [*ROWS, *ROWS]]
    rows[-1] |= {"label": "nobody knows it"}
    with pytest.raises(ValueError, match=f"row {len(rows) - 1}: label 'nobody knows it' is not among"):
        tuned.evaluate(rows, batch_size=1)


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_many_texts_have_the_perplexity_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    task = sp.TextGeneration("{text}", "{label}", max_new_tokens=1)
    written = sp.fit(tiny_backbone(), task, METHOD, ROWS, steps=1, progress=False)
    expected = written.evaluate(ROWS, batch_size=2)
    few_are_many(monkeypatch)
    found = written.evaluate(ROWS, batch_size=2)
    assert found == pytest.approx(expected)
