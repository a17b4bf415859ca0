"""evaluate --errors as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from softprompt.cli._error_page import error_page
from tests.cli.runs import ROWS, as_json, write_rows
from tests.cli.test_cli_verbs import Page


def wrong(number: int, confidence: float | None = 0.9, **changes: Any) -> dict[str, Any]:
    row = {
        "text": f"text {number}",
        "id": number,
        "right": "pos",
        "predicted": "neg",
        "confidence": confidence,
    }
    return row | {"probability_of_right": 0.1, **changes}


def shown(found: list[dict[str, Any]], rows: int = 600) -> str:
    facts = {"Method": "prompt-tuning"}
    return error_page("<title>", found, [{"text": "x"}] * rows, fields=["text"], facts=facts)


def test_the_page_says_how_many_are_wrong_and_what_is_taken_for_what() -> None:
    text = shown([wrong(0), wrong(1), wrong(2, right="neg", predicted="pos")])
    assert "3 of 600 rows are answered wrongly: 0.5 %, 95 % interval 0.2 to 1.5" in text
    assert "Most often pos is taken for neg, 2 times." in text
    page = Page(text)
    assert page.open == []
    assert [a["data-given"] for _, a in page.tags if "data-item" in a] == ["neg", "neg", "pos"]
    assert "are few" not in text


def test_many_rows_are_cut_and_it_says_so() -> None:
    text = shown([wrong(i) for i in range(501)])
    assert text.count("data-item data-right") == 500
    assert "The first 500 of 501 wrong rows are shown" in text


def test_rows_cannot_write_into_the_page() -> None:
    text = shown([wrong(0, text="<script>alert(1)</script>\x1b[2J", right='"><img src=x>')], rows=3)
    assert text.count("<script>") == 1
    assert "<img" not in text
    assert "\x1b" not in text
    assert "3 rows are few" in text


def test_texts_without_a_confidence_have_no_filter_for_it() -> None:
    text = shown([wrong(0, confidence=None, probability_of_right=None)])
    assert "at least this sure" not in text
    assert "Most often" not in text


def test_evaluate_writes_the_page(trained: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": {"pos": "neg", "neg": "pos"}[row["label"]]} for row in ROWS] + ROWS
    data = write_rows(tmp_path / "rows.jsonl", rows)
    as_json("evaluate", trained, "--data", data, "--errors", tmp_path / "wrong.html")
    page = Page((tmp_path / "wrong.html").read_text(encoding="utf-8"))
    surest = [float(str(a["data-confidence"])) for _, a in page.tags if "data-item" in a]
    assert len(surest) == len(ROWS)
    assert surest == sorted(surest, reverse=True)
