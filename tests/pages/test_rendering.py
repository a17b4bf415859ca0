"""Templates: what comes from outside is text, and nothing is run but the page's own script."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from softprompt.pages import data_url, render

HOSTILE = '</script><img src=x onerror="alert(1)">\x1b[2J\u202e'


def page(**changes: object) -> str:
    values = {"title": HOSTILE, "finding": HOSTILE, "remark": HOSTILE, "warning": HOSTILE, "sections": []}
    return render("report.html", **(values | changes))


def test_texts_are_escaped_and_control_characters_are_seen() -> None:
    text = page()
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<img" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert r"\x1b[2J" in text


def test_a_page_asks_for_nothing_from_elsewhere() -> None:
    text = page()
    assert not re.search(r"(src|href)=.?https?:|@import|url\(", text)
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", text)


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="finding"):
        render("report.html", title="x", remark="", warning="", sections=[])


def test_a_file_in_a_page_is_an_address() -> None:
    assert data_url("a,b\n", "text/csv") == "data:text/csv;base64,YSxiCg=="
