"""A study's plots: scores against what they cost, and as runs go on."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softprompt.studies.ablations import ablations
from softprompt.studies.drawing import Plot, legend, panels_of, plain, style
from softprompt.studies.results import COSTS, Result, StudyResults, accuracy_matrix, pareto_front

_TRADED = {  # what scores are held against, and the name of the picture
    "trained_parameters": "trained-parameters",
    "wall_seconds": "seconds",
    "memory": "peak-memory",
    "gpu_memory": "peak-gpu-memory",
}


def plots(results: StudyResults) -> list[Plot]:
    """Those that the study has something for."""
    found = [*ablations(results), *(_trade_off(results, name) for name in _TRADED)]
    return [plot for plot in (*found, _curves(results), _after_each_task(results)) if plot is not None]


def _trade_off(results: StudyResults, name: str) -> Plot | None:
    points = {
        line: (cost, score)
        for line in results.lines
        if (cost := results.cost(line, name)) is not None and (score := results.mean(line)) is not None
    }
    if len(points) < 2 or len({cost for cost, _ in points.values()}) < 2:
        return None
    front = sorted(pareto_front(points), key=lambda line: points[line])
    metric = " / ".join(results.metrics)

    def draw(ink: str) -> Figure:
        figure, [axes] = panels_of(1, ink)
        for line, (cost, score) in points.items():
            colour, mark = style(results.lines.index(line))
            fill: Any = "full" if line in front else "none"
            axes.plot([cost], [score], mark, color=colour, fillstyle=fill, markersize=8, label=plain(line))
        axes.plot(
            *zip(*(points[line] for line in front), strict=True), "--", color=ink, linewidth=0.8, zorder=0
        )
        costs = [cost for cost, _ in points.values()]
        least = min((cost for cost in costs if cost > 0), default=1)
        if max(costs) >= 10 * least:  # a narrower range would have one number on a logarithmic axis, or none
            if 0 in costs:
                axes.set_xscale("symlog", linthresh=10 ** math.floor(math.log10(least)))
            else:
                axes.set_xscale("log")
        axes.set_xlabel(COSTS[name])
        axes.set_ylabel(f"mean {metric}")
        axes.margins(0.1)
        legend(figure, [axes], ink)
        return figure

    words = "; ".join(
        f"{line}: {score:.3f} at {cost:,.0f}" if cost >= 100 else f"{line}: {score:.3f} at {cost:.3g}"
        for line, (cost, score) in points.items()
    )
    return Plot(
        f"score-by-{_TRADED[name]}",
        f"Score against {COSTS[name]}",
        f"{metric} against {COSTS[name]}: {words}. On the Pareto front: {', '.join(front)}.",
        draw,
    )


def _curves(results: StudyResults) -> Plot | None:
    def curve(found: Sequence[Result]) -> list[tuple[int, float]]:
        by_step: dict[int, list[float]] = defaultdict(list)
        for result in found:
            for entry in result.outcome.facts.get("evaluations", ()):
                by_step[entry["step"]].append(entry["value"])
        return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]

    curves = {
        (line, condition): points
        for condition, line in itertools.product(results.conditions, results.lines)
        if (points := curve(results.of(line, condition)))
    }
    conditions = list(dict.fromkeys(condition for _, condition in curves))
    if not curves:
        return None

    def draw(ink: str) -> Figure:
        figure, panels = panels_of(len(conditions), ink)
        for axes, condition in zip(panels, conditions, strict=True):
            _lines(results, axes, {line: points for (line, c), points in curves.items() if c == condition})
            if (majority := results.majority(condition, "validation")) is not None:
                axes.axhline(majority, color=ink, linestyle=":", linewidth=0.8, label="commonest label")
            axes.set_title(plain(condition), color=ink, fontsize=10)
            axes.set_xlabel("optimizer step")
            axes.set_ylabel(f"validation {results.metric(condition)}")
        legend(figure, panels, ink)
        return figure

    ends = "; ".join(
        f"{line}{f' on {condition}' if condition else ''} ends at {points[-1][1]:.3f}"
        for (line, condition), points in curves.items()
    )
    return Plot(
        "learning-curves", "Learning curves", f"Validation score by step, mean over seeds: {ends}.", draw
    )


def _after_each_task(results: StudyResults) -> Plot | None:
    """Classes that come in tasks: how the accuracy falls with their number."""
    curves = {
        (line, condition, data): [(t + 1, statistics.fmean(row)) for t, row in enumerate(matrix)]
        for condition, data, line in itertools.product(results.conditions, results.data, results.lines)
        if (matrix := accuracy_matrix(results.of(line, condition), data))
    }
    shown = list(dict.fromkeys((condition, data) for _, condition, data in curves))
    if not any(len(points) > 1 for points in curves.values()):
        return None

    def draw(ink: str) -> Figure:
        figure, panels = panels_of(len(shown), ink)
        for axes, place in zip(panels, shown, strict=True):
            _lines(results, axes, {line: points for (line, *at), points in curves.items() if (*at,) == place})
            axes.set_title(
                plain(", ".join(filter(None, place if len(results.data) > 1 else place[:1]))),
                color=ink,
                fontsize=10,
            )
            axes.set_xlabel("tasks learned")
            axes.set_ylabel("mean accuracy on them")
        legend(figure, panels, ink)
        return figure

    ends = "; ".join(
        f"{', '.join(filter(None, (line, condition)))} ends at {points[-1][1]:.3f}"
        for (line, condition, _), points in curves.items()
    )
    told = f"Mean accuracy on the tasks learned so far, after each of them, mean over seeds: {ends}."
    return Plot("after-each-task", "Accuracy after each task", told, draw)


def _lines(results: StudyResults, axes: Any, curves: dict[str, list[tuple[int, float]]]) -> None:
    for line, points in curves.items():
        colour, mark = style(results.lines.index(line))
        axes.plot(*zip(*points, strict=True), f"{mark}-", color=colour, markersize=3, label=plain(line))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
