"""A study's plots: scores against what they cost, and as runs go on."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softprompt.studies.ablations import ablations
from softprompt.studies.drawing import Plot, legend, panels_of, plain, style
from softprompt.studies.results import COSTS, Result, StudyResults, accuracy_matrix, pareto_front

Curves = Mapping[tuple[str, str, str], Sequence[tuple[int, float]]]
"""Line, condition and, where there are several, data set -> points from left to right."""

_TRADED = {  # what scores are held against, and the name of the picture
    "trained_parameters": "trained-parameters",
    "wall_seconds": "seconds",
    "memory": "peak-memory",
    "gpu_memory": "peak-gpu-memory",
}


def plots(results: StudyResults) -> list[Plot]:
    """The plots for which the study has data."""
    found: list[Plot | None] = [*ablations(results), *(_trade_off(results, name) for name in _TRADED)]
    found += [_curves(results), _losses(results), _after_each_task(results), _prompt_selection(results)]
    return [plot for plot in found if plot is not None]


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
                least_power, most_power = (math.floor(math.log10(cost)) for cost in (least, max(costs)))
                axes.set_xscale("symlog", linthresh=10**least_power)
                axes.set_xticks([0, *(10**power for power in range(least_power, most_power + 1))])
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

    def draw(axes: Any, condition: str, ink: str) -> None:
        if (majority := results.majority(condition, "validation")) is not None:
            axes.axhline(majority, color=ink, linestyle=":", linewidth=0.8, label="commonest label")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(f"validation {results.metric(condition)}")

    return _over_time(
        results,
        "learning-curves",
        "Learning curves",
        "Validation score by step, mean over seeds",
        {
            (line, condition, ""): points
            for condition, line in itertools.product(results.conditions, results.lines)
            if (points := curve(results.of(line, condition)))
        },
        draw,
    )


def _losses(results: StudyResults) -> Plot | None:
    """Losses of runs without evaluations during training, such as class-incremental and base-to-new runs."""

    def curve(found: Sequence[Result]) -> list[tuple[int, float]]:
        steps = min((len(result.losses) for result in found), default=0)
        size = max(1, steps // 40)  # single batches are noise
        return [
            (end, statistics.fmean(loss for r in found for loss in r.losses[end - size : end]))
            for end in range(size, steps + 1, size)
        ]

    def draw(axes: Any, condition: str, ink: str) -> None:
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("training loss")

    return _over_time(
        results,
        "training-loss",
        "Training loss",
        "Loss on the batches before each step, mean over seeds and over up to a fortieth of the steps",
        {
            (line, condition, ""): points
            for condition, line in itertools.product(results.conditions, results.lines)
            if (points := curve(results.of(line, condition)))
        },
        draw,
    )


def _after_each_task(results: StudyResults) -> Plot | None:
    """Class-incremental runs: accuracy after each task."""

    def draw(axes: Any, condition: str, ink: str) -> None:
        axes.set_xlabel("tasks learned")
        axes.set_ylabel("mean accuracy on them")

    return _over_time(
        results,
        "after-each-task",
        "Accuracy after each task",
        "Mean accuracy on the tasks learned so far, after each of them, mean over seeds",
        {
            (line, condition, data if len(results.data) > 1 else ""): [
                (t + 1, statistics.fmean(row)) for t, row in enumerate(matrix)
            ]
            for condition, data, line in itertools.product(results.conditions, results.data, results.lines)
            if len(matrix := accuracy_matrix(results.of(line, condition), data)) > 1
        },
        draw,
    )


def _prompt_selection(results: StudyResults) -> Plot | None:
    """Class-incremental runs with pools: how often each prompt was chosen in each task (L2P, figure 3)."""
    found: dict[str, list[list[int]]] = {}
    for condition, data, line in itertools.product(results.conditions, results.data, results.lines):
        tables = [
            table
            for result in results.of(line, condition)
            if (table := result.outcome.facts.get("metrics", {}).get(data, {}).get("chosen"))
        ]
        if tables and len({(len(table), len(table[0])) for table in tables}) == 1:
            where = ", ".join(filter(None, (line, condition, data if len(results.data) > 1 else "")))
            found[where] = [
                [sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)
            ]
    if not found:
        return None

    def draw(ink: str) -> Figure:
        figure, panels = panels_of(len(found), ink)
        for axes, (where, table) in zip(panels, found.items(), strict=True):
            width = 0.8 / len(table)
            for t, row in enumerate(table):
                places = [j + (t + 0.5) * width - 0.4 for j in range(len(row))]
                shares = [count / max(1, sum(row)) for count in row]
                axes.bar(places, shares, width, color=style(t)[0], label=f"task {t + 1}")
            axes.set_title(plain(where), color=ink, fontsize=10)
            axes.set_xlabel("prompt of the pool")
            axes.set_ylabel("share of the selections")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(figure, panels, ink)
        return figure

    used = "; ".join(
        f"{where}: {sum(any(column) for column in zip(*table, strict=True))} of {len(table[0])} prompts were ever chosen"
        for where, table in found.items()
    )
    return Plot(
        "prompt-selection",
        "Prompts chosen by task",
        f"While each task was learned, over seeds: {used}.",
        draw,
    )


def _over_time(
    results: StudyResults,
    name: str,
    title: str,
    told: str,
    curves: Curves,
    finish: Callable[[Any, str, str], None],
) -> Plot | None:
    """A panel for each condition and data set; `finish` gets axes, condition and text colour. None if there are no curves."""
    places = list(dict.fromkeys((condition, data) for _, condition, data in curves))
    if not curves:
        return None

    def draw(ink: str) -> Figure:
        figure, panels = panels_of(len(places), ink)
        for axes, place in zip(panels, places, strict=True):
            for (line, *at), points in curves.items():
                if (*at,) == place:
                    colour, mark = style(results.lines.index(line))
                    axes.plot(
                        *zip(*points, strict=True), f"{mark}-", color=colour, markersize=3, label=plain(line)
                    )
            axes.set_title(plain(", ".join(filter(None, place))), color=ink, fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            finish(axes, place[0], ink)
        legend(figure, panels, ink)
        return figure

    ends = "; ".join(
        f"{', '.join(filter(None, where))} ends at {points[-1][1]:.3f}" for where, points in curves.items()
    )
    return Plot(name, title, f"{told}: {ends}.", draw)
