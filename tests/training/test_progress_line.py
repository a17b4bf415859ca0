"""Lines of progress: they fit, and what matters most stays."""

from __future__ import annotations

import pytest

from softprompt.training.progress_line import Standing, clock, fitted, line

RUN = Standing(
    1234, 20_000, 7384, 0.5123, {"accuracy": 0.8125, "macro_f1": 0.8}, "12,345 tokens/s", "prompt-tuning-abc"
)


@pytest.mark.parametrize("width", range(1, 140))
def test_no_line_is_wider_than_its_terminal(width: int) -> None:
    for ascii_only in (False, True):
        found = fitted(RUN, width, ascii_only=ascii_only).plain
        assert len(found) <= width
        assert found.isascii() or not ascii_only
        if width >= 47:
            assert "1,234/20,000  2:03:04 left  accuracy 0.8125" in found


def test_room_is_given_by_importance() -> None:
    assert fitted(RUN, 55).plain == "━─────────  1,234/20,000  2:03:04 left  accuracy 0.8125"
    assert fitted(RUN, 79).plain.endswith("accuracy 0.8125  loss 0.5123")
    assert fitted(RUN, 139).plain.endswith("loss 0.5123  12,345 tokens/s  macro_f1 0.8  prompt-tuning-abc")


def test_times_are_clocks() -> None:
    assert [clock(seconds) for seconds in (None, 0.4, 61, 3600)] == [
        "",
        "0:00 left",
        "1:01 left",
        "1:00:00 left",
    ]
    assert line(Standing(0, 5, unit="runs")) == "runs 0/5"
