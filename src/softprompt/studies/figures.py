"""A study's plots, as SVG for the page and as PNG beside it."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softprompt.studies.results import COSTS, Result, StudyResults, pareto_front
from softprompt.studies.statistics import summarize

# Okabe and Ito's palette without its black and yellow: told apart by colour-blind readers, on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKS = "osD^vPX*"
_INK = "#010203"  # stands for the page's own text colour, which an SVG in a page takes over


@dataclass(frozen=True)
class Plot:
    """A picture: its file name, what it is called, what it shows in a sentence, and how it is drawn in a given ink."""

    name: str
    title: str
    alternative: str
    draw: Callable[[str], Figure]

    def svg(self) -> str:
        """For the middle of a page: no declarations, no addresses, text in the page's own colour."""
        text = self._saved("svg", _INK).decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r' xmlns:?\w*="[^"]*"', "", text)
        text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
        return text.replace("<svg", f'<svg role="img" aria-label="{escape(self.alternative)}"', 1)

    def file(self) -> str:
        """The same as a file of its own."""
        return self._saved("svg", "black").decode()

    def png(self) -> bytes:
        return self._saved("png", "black")

    def _saved(self, kind: str, ink: str) -> bytes:
        # A salt for each picture: ids of pictures in one page must differ, and a second report be the same as the first.
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none", "font.family": "sans-serif"}):
            figure = self.draw(ink)
            stream = io.BytesIO()
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
            is_page = ink == _INK
            figure.savefig(stream, format=kind, metadata=metadata, transparent=is_page, dpi=150)
        return stream.getvalue()


def plots(results: StudyResults) -> list[Plot]:
    """Those that the study has something for."""
    found = [_ablation(results, axis) for axis in _numeric_axes(results)]
    for name in ("trained_parameters", "wall_seconds", "host", "device"):
        if (plot := _trade_off(results, name)) is not None:
            found.append(plot)
    if any(r.outcome.facts.get("evaluations") for r in results.finals):
        found.append(_curves(results))
    return found


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
        figure, [axes] = _figure(1, ink)
        for line, (cost, score) in points.items():
            colour, mark = _style(results, line)
            fill: Any = "full" if line in front else "none"
            axes.plot([cost], [score], mark, color=colour, fillstyle=fill, markersize=8, label=_plain(line))
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
        _legend(figure, axes, ink)
        return figure

    words = "; ".join(
        f"{line}: {score:.3f} at {cost:,.0f}" if cost >= 100 else f"{line}: {score:.3f} at {cost:.3g}"
        for line, (cost, score) in points.items()
    )
    return Plot(
        f"score-by-{name.replace('_', '-')}",
        f"Score against {COSTS[name]}",
        f"{metric} against {COSTS[name]}: {words}. On the Pareto front: {', '.join(front)}.",
        draw,
    )


def _curves(results: StudyResults) -> Plot:
    conditions = results.conditions[:9]

    def curve(found: Sequence[Result]) -> list[tuple[int, float]]:
        by_step: dict[int, list[float]] = defaultdict(list)
        for result in found:
            for entry in result.outcome.facts.get("evaluations", ()):
                by_step[entry["step"]].append(entry["value"])
        return [(step, statistics.fmean(values)) for step, values in sorted(by_step.items())]

    def draw(ink: str) -> Figure:
        figure, panels = _figure(len(conditions), ink)
        for axes, condition in zip(panels, conditions, strict=True):
            for line in results.lines:
                if points := curve(results.of(line, condition)):
                    colour, mark = _style(results, line)
                    axes.plot(
                        *zip(*points, strict=True), f"{mark}-", color=colour, markersize=3, label=_plain(line)
                    )
            if (majority := results.majority(condition, "validation")) is not None:
                axes.axhline(majority, color=ink, linestyle=":", linewidth=0.8, label="commonest label")
            axes.set_title(_plain(condition), color=ink, fontsize=10)
            axes.set_xlabel("optimizer step")
            axes.set_ylabel(f"validation {results.metric(condition)}")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _legend(figure, panels[0], ink)
        return figure

    ends = "; ".join(
        f"{line}{f' on {condition}' if condition else ''} ends at {points[-1][1]:.3f}"
        for line, condition in itertools.product(results.lines, conditions)
        if (points := curve(results.of(line, condition)))
    )
    return Plot(
        "learning-curves", "Learning curves", f"Validation score by step, mean over seeds: {ends}.", draw
    )


def _ablation(results: StudyResults, axis: str) -> Plot:
    values = sorted(results.study.axes[axis], key=float)
    name, metric, data = axis.split(".")[-1], " / ".join(results.metrics), results.data[0]
    is_compared = axis == results.study.compare

    def points(key: str) -> list[tuple[float, list[float]]]:
        found = []
        for value in values:
            scores = [
                score
                for r in results.finals
                if r.run.cell.get(axis) == value and key == (r.condition if is_compared else r.line)
                if (score := r.score(data)) is not None
            ]
            if scores:
                found.append((float(value), scores))
        return found

    keys = results.conditions if is_compared else results.lines

    def draw(ink: str) -> Figure:
        figure, [axes] = _figure(1, ink)
        for i, key in enumerate(keys):
            if not (found := points(key)):
                continue
            colour, mark = _COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]
            summaries = [summarize(scores) for _, scores in found]
            axes.errorbar(
                [value for value, _ in found],
                [summary.mean for summary in summaries],
                yerr=[summary.std or 0 for summary in summaries],
                fmt=f"{mark}-",
                color=colour,
                capsize=3,
                markersize=4,
                label=_plain(key),
            )
        if all(float(value) > 0 for value in values) and float(values[-1]) >= 10 * float(values[0]):
            axes.set_xscale("log")
        axes.set_xlabel(_plain(name))
        axes.set_ylabel(f"{data} {metric}")
        _legend(figure, axes, ink)
        return figure

    words = "; ".join(
        f"{key or metric}: " + ", ".join(f"{value:g}: {statistics.fmean(s):.3f}" for value, s in points(key))
        for key in keys
    )
    return Plot(
        f"by-{axis.replace('.', '-')}",
        f"Score by {name}",
        f"{data} {metric} by {name}, mean and standard deviation over seeds. {words}.",
        draw,
    )


def _numeric_axes(results: StudyResults) -> list[str]:
    return [
        axis
        for axis, options in results.study.axes.items()
        if len(options) > 1 and all(re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", label) for label in options)
    ]


def _figure(count: int, ink: str) -> tuple[Figure, list[Any]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 4 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[count:]:
        unused.set_axis_off()
    for axes in panels:
        axes.tick_params(which="both", colors=ink, labelsize=9)
        for part in (axes.xaxis.label, axes.yaxis.label):
            part.set_color(ink)
        for spine in axes.spines.values():
            spine.set_color(ink)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels[:count]


def _legend(figure: Figure, axes: Any, ink: str) -> None:
    """Below the plot, which grows by it: among the lines it would lie on some."""
    handles, labels = axes.get_legend_handles_labels()
    if len([label for label in labels if label]) < 2:
        return
    columns = 1 if max(map(len, labels)) > 40 else 2 if figure.get_figwidth() < 8 else 3
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(labels) // columns))
    figure.legend(
        handles, labels, loc="outside lower left", ncols=columns, frameon=False, labelcolor=ink, fontsize=9
    )


def _style(results: StudyResults, line: str) -> tuple[str, str]:
    i = results.lines.index(line)
    return _COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]


def _plain(text: str) -> str:
    """No formula, and nothing that a legend would leave out."""
    return text.replace("$", r"\$").lstrip("_")
