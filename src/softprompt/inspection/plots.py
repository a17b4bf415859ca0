"""Figures of a run. They are drawn without a window and without the global state of pyplot.

The label of a figure (`figure.get_label()`) says in words what it shows; `save_figure` writes it into the file.
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from softprompt.files import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from softprompt.backbones.vision.class_attention import ClassAttention

# Colours of Okabe and Ito's palette, told apart by colour-blind readers too.
_BLUE, _ORANGE, _GREEN = "#0072b2", "#d55e00", "#009e73"


def learning_curve(
    history: Sequence[Mapping[str, Any]], metric: str, *, baseline: float | None = None, title: str = ""
) -> Figure:
    """Draw the training loss by step, and below it the validation metric if the run was evaluated.

    Arguments:
        history: one record per step, with "step", "loss" and, after an evaluation, "eval/<metric>"
        metric: the name of the validation metric
        baseline: a level that the metric is compared with, such as the accuracy of the majority class
        title: the title of the figure

    Raises:
        ValueError: for an empty history
    """
    if not history:
        raise ValueError("the history is empty: there is no curve to draw")
    evaluated = [record for record in history if record.get(f"eval/{metric}") is not None]
    figure = _figure(7, 5.5 if evaluated else 3, title)
    panels = figure.subplots(2 if evaluated else 1, 1, sharex=True, squeeze=False)[:, 0]

    steps = [record["step"] for record in history]
    losses = [record["loss"] for record in history]
    window = max(1, len(losses) // 20)
    panels[0].plot(
        steps, losses, color=_BLUE, alpha=0.35 if window > 1 else 1, linewidth=0.8, label="each batch"
    )
    if window > 1:
        panels[0].plot(steps, _running_median(losses, window), color=_BLUE, label=f"median of {window} steps")
        panels[0].legend(frameon=False)
    panels[0].set_ylabel("training loss")
    if evaluated:
        values = [record[f"eval/{metric}"] for record in evaluated]
        panels[1].plot([record["step"] for record in evaluated], values, "o-", color=_ORANGE, markersize=3)
        best = values.index(max(values))  # the earlier of two equal ones, as in training
        panels[1].annotate(
            f"best {values[best]:.4g}",
            (evaluated[best]["step"], values[best]),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
        )
        panels[1].margins(y=0.2)
        if baseline is not None:
            level = f"always the commonest label, {baseline:.4g}"
            panels[1].axhline(baseline, color="gray", linestyle="--", linewidth=0.8, label=level)
            panels[1].legend(frameon=False, loc="lower right")
            low, high = min(baseline, *values), max(baseline, *values)
            room = 0.12 * (high - low) or 0.1
            # The axis begins at the score that needs no training, or at the lowest score if that is below it.
            panels[1].set_ylim(low - (room if low < baseline else room / 6), high + room)
        panels[1].set_ylabel(f"validation {metric}")
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    words = f"training loss from {losses[0]:.3g} to {losses[-1]:.3g} in {steps[-1]} steps"
    if evaluated:
        words += f"; best validation {metric} {values[best]:.4g} at step {evaluated[best]['step']}"
        if baseline is not None:
            words += f", where always giving the commonest label has {baseline:.4g}"
    figure.set_label(words)
    return figure


def accuracy_matrix(
    matrix: Sequence[Sequence[float]], tasks: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Draw a heat map of the accuracies of a model that learns one task after the other.

    Arguments:
        matrix: row t holds the accuracies after task t, shares from 0 to 1, on tasks 0 to t or on all tasks
        tasks: the names of the tasks; None: numbers
        title: the title of the figure

    Raises:
        ValueError: for an empty matrix, for accuracies in percent, and unless there is one name for each row
    """
    if not matrix or not all(len(row) for row in matrix):
        raise ValueError("the accuracy matrix is empty: there is nothing to draw")
    if max(map(max, matrix)) > 1:
        raise ValueError(f"the accuracy matrix holds {max(map(max, matrix))}: expected shares, 0 to 1")
    names = _names(tasks, len(matrix), "rows of the accuracy matrix")
    width = max(map(len, matrix))
    cells = [[*row, *[math.nan] * (width - len(row))] for row in matrix]
    figure = _figure(2.5 + 0.55 * width, 1.6 + 0.42 * len(cells), title)
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for t, row in enumerate(matrix):
        for i, value in enumerate(row):
            colour = "black" if value > 0.45 else "white"  # against cividis, which grows lighter
            axes.text(i, t, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(
        range(width), names[:width], rotation=45 if tasks else 0, ha="right" if tasks else "center"
    )
    axes.set_yticks(range(len(cells)), names)
    axes.set_xlabel("accuracy on task (%)")
    axes.set_ylabel("after task")
    figure.colorbar(image, ax=axes, format=PercentFormatter(1), label="accuracy")
    last = ", ".join(f"{name} {100 * value:.0f}" for name, value in zip(names, matrix[-1], strict=False))
    figure.set_label(f"accuracy after each of {len(matrix)} tasks; after the last, in percent: {last}")
    return figure


def confusion_matrix(counts: Mapping[str, Mapping[str, int]], *, title: str = "") -> Figure:
    """Draw a heat map of right labels (down) and given labels (across), as shares of a right label's rows.

    counts: right label -> given label -> rows, as in `confusion` of a task's metrics; labels without rows are left out
    Raises ValueError if there are no rows.
    """
    rows = [label for label, row in counts.items() if sum(row.values())]
    if not rows:
        raise ValueError("the confusion matrix holds no rows: there is nothing to draw")
    given = dict.fromkeys(label for row in counts.values() for label, count in row.items() if count)
    columns = [label for label in dict.fromkeys([*counts, *given]) if label in rows or label in given]
    cells = [[counts[r].get(c, 0) / sum(counts[r].values()) for c in columns] for r in rows]
    figure = _figure(2.5 + 0.45 * len(columns), 2.0 + 0.36 * len(rows), title)
    axes = figure.subplots()
    image = axes.imshow(cells, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            if number := counts[row].get(column, 0):
                colour = "black" if cells[i][j] > 0.45 else "white"  # against cividis, which grows lighter
                axes.text(j, i, str(number), ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(
        range(len(columns)),
        _names(columns, len(columns), "columns of the confusion matrix"),
        rotation=45,
        ha="right",
    )
    axes.set_yticks(range(len(rows)), _names(rows, len(rows), "rows of the confusion matrix"))
    axes.set_xlabel("given label")
    axes.set_ylabel("right label")
    figure.colorbar(image, ax=axes, format=PercentFormatter(1), label="share of the right label's rows")
    total = sum(sum(counts[row].values()) for row in rows)
    wrong = [(counts[r].get(c, 0), r, c) for r in rows for c in columns if r != c and counts[r].get(c, 0)]
    said = f"{total - sum(number for number, _, _ in wrong)} of {total} rows were given their label"
    if wrong:
        number, right, taken = max(wrong, key=lambda entry: entry[0])
        said += f"; the commonest mistake is {right} taken for {taken}, {number} times"
    figure.set_label(said)
    return figure


def prompt_selection(
    counts: Sequence[Sequence[int]], tasks: Sequence[str] | None = None, *, title: str = ""
) -> Figure:
    """Draw how often each prompt of a pool was chosen, a histogram for each task (L2P, arXiv 2112.08654, Figure 3).

    Arguments:
        counts: row t holds how often each prompt was chosen for images of task t; bars are shares of the row's sum
        tasks: the names of the tasks; None: numbers
        title: the title of the figure

    Raises:
        ValueError: for a table that is empty or not rectangular, for negative counts, and unless there is one name for each
            row
    """
    if not counts or not len(counts[0]) or any(len(row) != len(counts[0]) for row in counts):
        raise ValueError(
            f"the rows of the table have {[len(row) for row in counts]} counts, expected one for each prompt of the pool"
        )
    if min(map(min, counts)) < 0:
        raise ValueError(f"the table of selections holds {min(map(min, counts))}: expected counts")
    names = _names(tasks, len(counts), "rows of the table of selections")
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    figure = _figure(max(4, 1.5 + 0.3 * len(counts[0])), 1.2 + 0.9 * len(counts), title)
    panels = figure.subplots(len(counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, name, row in zip(panels, names, shares, strict=True):
        axes.bar(range(len(row)), row, color=_BLUE)
        axes.set_ylabel(name, rotation=0, ha="right", va="center")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(axis="y", labelsize=7)
    panels[-1].set_xlabel("prompt of the pool")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.supylabel("share of the selections, by task", fontsize=9)
    used = sum(any(row[j] for row in counts) for j in range(len(counts[0])))
    favourites = ", ".join(
        f"{name} {row.index(max(row))} ({100 * max(row):.0f} %)"
        for name, row in zip(names, shares, strict=True)
    )
    figure.set_label(
        f"{used} of {len(counts[0])} prompts were ever chosen; most often, by task: {favourites}"
    )
    return figure


def attention_over_image(
    pixels: Tensor, attention: ClassAttention, *, panels: int = 4, title: str = ""
) -> Figure:
    """Draw an image, what its class token attends to in some layers, and the share of attention on prompts in every layer.

    Arguments:
        pixels: (3, H, W) uint8, as the backbone saw them
        attention: the attention of this image; the mean over heads is drawn
        panels: the number of layers that are drawn over the image, evenly spaced up to the last
        title: the title of the figure
    """
    heat = attention.patches.float().mean(dim=1).cpu()  # (L, H, h, w) -> (L, h, w)
    count = len(heat)
    shown = sorted({round((i + 1) * count / panels) for i in range(panels)} - {0})
    figure = _figure(1.9 * (len(shown) + 1) + 3.2, 2.4, title)
    axes = figure.subplots(1, len(shown) + 2, width_ratios=[1] * (len(shown) + 1) + [1.6])
    picture = pixels.permute(1, 2, 0).cpu().numpy()  # (3, H, W) -> (H, W, 3)
    height, width = picture.shape[:2]
    for place, panel in enumerate(axes[:-1]):
        panel.imshow(picture, extent=(0, width, height, 0))
        panel.set_axis_off()
        panel.set_title("image" if not place else f"layer {shown[place - 1]}", fontsize=9)
        if place:
            layer = heat[shown[place - 1] - 1]
            panel.imshow(
                (layer / layer.max()).numpy(), cmap="inferno", alpha=0.65, extent=(0, width, height, 0)
            )
    shares = attention.shares()
    for (name, values), colour, mark in zip(shares.items(), (_ORANGE, _BLUE, _GREEN), "os^", strict=True):
        axes[-1].plot(range(1, count + 1), values, f"{mark}-", color=colour, markersize=3, label=name)
    axes[-1].set_ylim(0, 1)
    axes[-1].yaxis.set_major_formatter(PercentFormatter(1))
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("layer")
    axes[-1].set_ylabel("share of attention")
    axes[-1].legend(frameon=False, fontsize=7)
    last = ", ".join(f"{100 * values[-1]:.0f} % to {name}" for name, values in shares.items())
    row, column = divmod(int(heat[-1].argmax()), heat.shape[2])
    figure.set_label(
        f"attention of the class token, mean over heads; in the last of {count} layers {last}; the patch it attends to"
        f" most is in row {row + 1} of {heat.shape[1]}, column {column + 1} of {heat.shape[2]}"
    )
    return figure


def as_png(figure: Figure) -> bytes:
    """Return the bytes of a PNG that holds the figure's label."""
    content = io.BytesIO()
    figure.savefig(content, format="png", metadata={"Description": str(figure.get_label())})
    return content.getvalue()


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG as a whole or not at all. Raises OSError if it cannot be written."""
    write_bytes(path, as_png(figure))


def _figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure; width and height are in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title.replace("$", r"\$"))  # no formula
    return figure


def _names(names: Sequence[str] | None, count: int, of: str) -> list[str]:
    if names is None:
        return [str(number) for number in range(1, count + 1)]
    if len(names) != count:
        raise ValueError(f"there are {len(names)} names of tasks, {list(names)}, and {count} {of}")
    return [name.replace("$", r"\$") for name in names]


def _running_median(values: Sequence[float], window: int) -> list[float]:
    """Return at each position the median of the last `window` values, or of fewer at the beginning."""
    return [statistics.median(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
