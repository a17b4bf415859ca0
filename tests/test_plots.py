"""The learning curve: what is drawn, and that a picture is written whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softprompt.plots import learning_curve, save_figure

HISTORY = [{"step": step, "loss": 1 / step} for step in range(1, 11)]
EVALUATED = [
    record | ({"eval/accuracy": record["step"] / 10} if record["step"] % 5 == 0 else {}) for record in HISTORY
]


def test_the_curve_shows_loss_metric_and_baseline() -> None:
    figure = learning_curve(EVALUATED, "accuracy", baseline=0.5, title="a $ b")
    loss, metric = figure.axes
    assert loss.get_lines()[0].get_xydata().tolist() == [[r["step"], r["loss"]] for r in HISTORY]
    assert metric.get_lines()[0].get_xydata().tolist() == [[5, 0.5], [10, 1.0]]
    assert metric.get_lines()[1].get_ydata() == [0.5, 0.5]
    assert [text.get_text() for text in metric.texts] == ["best 1"]


def test_without_evaluations_there_is_the_loss_alone() -> None:
    assert len(learning_curve(HISTORY, "accuracy").axes) == 1


def test_a_run_without_steps_has_no_curve() -> None:
    with pytest.raises(ValueError, match="history is empty"):
        learning_curve([], "accuracy")


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    save_figure(learning_curve(HISTORY, "accuracy"), tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_plots_leave_pyplot_and_its_global_state_alone() -> None:
    code = "import sys, softprompt.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    )  # other tests may import it


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(OSError, match=r"curve\.png"):
        save_figure(learning_curve(HISTORY, "accuracy"), tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
