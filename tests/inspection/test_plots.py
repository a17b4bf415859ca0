"""What pictures show, what they say of themselves, and that they are written whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softprompt.backbones.vision.class_attention import ClassAttention
from softprompt.inspection.plots import (
    accuracy_matrix,
    attention_over_image,
    confusion_matrix,
    learning_curve,
    prompt_selection,
    save_figure,
)

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
    assert metric.get_legend().get_texts()[0].get_text() == "always the commonest label, 0.5"
    assert 0.45 < metric.get_ylim()[0] < 0.5  # the axis begins there
    assert (
        learning_curve(EVALUATED, "accuracy", baseline=0.8).axes[1].get_ylim()[0] < 0.5
    )  # nothing is cut off


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
    code = "import sys, softprompt.inspection.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    )  # other tests may import it


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "curve.png").mkdir()
    with pytest.raises(OSError, match=r"curve\.png"):
        save_figure(learning_curve(HISTORY, "accuracy"), tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


# --- pictures of images and of tasks ------------------------------------------------------------------------

MATRIX = [[0.9], [0.7, 0.8], [0.5, 0.6, 1.0]]


def test_the_matrix_names_tasks_and_writes_every_accuracy() -> None:
    figure = accuracy_matrix(MATRIX, ["cats", "dogs $", "cows"], title="L2P")
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("accuracy on task (%)", "after task")
    assert [text.get_text() for text in axes.texts] == ["90", "70", "80", "50", "60", "100"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cats", r"dogs \$", "cows"]
    cells = np.asarray(axes.get_images()[0].get_array().filled(np.nan))  # type: ignore[union-attr]
    assert np.isnan(cells[0, 1])
    assert figure.get_label() == (
        "accuracy after each of 3 tasks; after the last, in percent: cats 50, dogs \\$ 60, cows 100"
    )


def test_the_histogram_shows_shares_of_each_task() -> None:
    figure = prompt_selection([[3, 1, 0], [0, 0, 0], [0, 0, 5]], ["a", "b", "c"])
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes]  # type: ignore[attr-defined]
    assert heights == [[0.75, 0.25, 0], [0, 0, 0], [0, 0, 1]]
    assert [axes.get_ylabel() for axes in figure.axes] == ["a", "b", "c"]
    assert figure.axes[-1].get_xlabel() == "prompt of the pool"
    assert "3 of 3 prompts were ever chosen" in str(figure.get_label())
    assert "a 0 (75 %)" in str(figure.get_label())


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: accuracy_matrix([]), "matrix is empty"),
        (lambda: accuracy_matrix([[90.0]]), "expected shares"),
        (lambda: accuracy_matrix(MATRIX, ["a"]), "1 names of tasks"),
        (lambda: prompt_selection([[1, 2], [3]]), "one for each prompt of the pool"),
        (lambda: prompt_selection([[1, -2]]), "holds -2"),
    ],
)
def test_tables_that_cannot_be_drawn_are_refused(draw: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def attention(layers: int = 3) -> ClassAttention:
    """A quarter to prompts, half to the last patch, the rest to the class token."""
    patches = torch.zeros(layers, 2, 2, 3)
    patches[:, :, 1, 2] = 0.5
    return ClassAttention((torch.full((2, 5), 0.05),) * layers, torch.full((layers, 2, 1), 0.25), patches)


def test_attention_lies_over_the_image_and_its_shares_beside() -> None:
    pixels = torch.zeros(3, 8, 12, dtype=torch.uint8)
    figure = attention_over_image(pixels, attention(), panels=2)
    *panels, shares = figure.axes
    assert [panel.get_title() for panel in panels] == ["image", "layer 2", "layer 3"]
    heat = np.asarray(panels[-1].get_images()[1].get_array())
    assert heat.shape == (2, 3)
    assert heat.argmax() == 5
    assert all(tuple(image.get_extent()) == (0, 12, 8, 0) for panel in panels for image in panel.get_images())
    assert (shares.get_xlabel(), shares.get_ylabel()) == ("layer", "share of attention")
    lines = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in shares.get_lines()}
    expected = {"prompts": 0.25, "patches": 0.5, "class token and registers": 0.25}
    assert lines == {name: pytest.approx([share] * 3) for name, share in expected.items()}
    assert "25 % to prompts" in str(figure.get_label())
    assert "row 2 of 2, column 3 of 3" in str(figure.get_label())


def test_more_panels_than_layers_are_not_drawn_twice() -> None:
    pixels = torch.zeros(3, 8, 12, dtype=torch.uint8)
    assert len(attention_over_image(pixels, attention(2), panels=5).axes) == 1 + 2 + 1


@pytest.mark.slow
def test_every_picture_says_in_its_file_what_it_shows(tmp_path: Path) -> None:
    pixels = torch.zeros(3, 8, 12, dtype=torch.uint8)
    for number, figure in enumerate(
        (
            learning_curve(EVALUATED, "accuracy"),
            accuracy_matrix(MATRIX),
            prompt_selection([[1, 2]]),
            attention_over_image(pixels, attention()),
        )
    ):
        save_figure(figure, tmp_path / f"{number}.png")
        with Image.open(tmp_path / f"{number}.png") as image:
            assert image.info["Description"] == figure.get_label() != ""


def test_a_confusion_matrix_shows_counts_and_says_the_commonest_mistake() -> None:
    counts = {
        "cat": {"cat": 3, "dog": 1, "fox": 0, "owl": 0},
        "dog": {"cat": 2, "dog": 0, "fox": 2, "owl": 0},
        "fox": dict.fromkeys(("cat", "dog", "fox", "owl"), 0),
        "owl": dict.fromkeys(("cat", "dog", "fox", "owl"), 0),
    }
    figure = confusion_matrix(counts)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "cat",
        "dog",
        "fox",
    ]  # no row had to do with owls
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0.5, 0, 0.5]])
    assert [text.get_text() for text in axes.texts] == ["3", "1", "2", "2"]
    assert figure.get_label() == (
        "3 of 8 rows were given their label; the commonest mistake is dog taken for cat, 2 times"
    )
    with pytest.raises(ValueError, match="holds no rows"):
        confusion_matrix({"cat": {"cat": 0}})
