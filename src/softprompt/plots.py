"""Pictures of a run. Figures are objects, drawn without a window and without pyplot's global state."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Two colours of Okabe and Ito's palette, told apart by colour-blind readers too.
_BLUE, _ORANGE = "#0072b2", "#d55e00"


def learning_curve(
    history: Sequence[Mapping[str, Any]], metric: str, *, baseline: float | None = None, title: str = ""
) -> Figure:
    """Training loss by step, and below it the validation metric where the run was evaluated.

    history   one record per step, with "step", "loss" and, after an evaluation, "eval/<metric>"
    baseline  a level that the metric is to be read beside, such as the majority class's accuracy

    Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("the history is empty: there is no curve to draw")
    evaluated = [record for record in history if record.get(f"eval/{metric}") is not None]
    figure = Figure(figsize=(7, 5.5 if evaluated else 3), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
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
            panels[1].axhline(baseline, color="gray", linestyle="--", linewidth=0.8, label="majority class")
            panels[1].legend(frameon=False)
        panels[1].set_ylabel(f"validation {metric}")
    panels[-1].set_xlabel("optimizer step")
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.suptitle(title.replace("$", r"\$"))  # no formula
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all. Raises OSError if it cannot be written."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of the last `window` values at each place, of fewer at the beginning."""
    return [statistics.median(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
