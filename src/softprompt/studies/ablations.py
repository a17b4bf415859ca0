"""A study's scores by the values of one axis: length, steps, the size of the backbone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from softprompt.studies.drawing import Plot, legend, panels_of, plain, style
from softprompt.studies.results import StudyResults, condition_of
from softprompt.studies.statistics import Summary, summarize

Series = dict[str, dict[str, Summary]]
"""Name of a curve -> label of the axis -> scores over seeds."""


@dataclass(frozen=True)
class _Panel:
    """All curves of one metric on one data set, under one combination of the axes that are neither shown nor compared."""

    title: str
    metric: str
    series: Series


def ablations(results: StudyResults) -> list[Plot]:
    """One plot for each axis of numbers or of backbones of known size."""
    found = []
    for axis, options in results.study.axes.items():
        panels = _panels(results, axis)
        if len(options) < 2 or not any(len(curve) > 1 for panel in panels for curve in panel.series.values()):
            continue
        numbers, name = _numbers(results, axis)
        if numbers is not None:
            found.append(_by_number(axis, name, numbers, panels))
    return found


def _panels(results: StudyResults, axis: str) -> list[_Panel]:
    """One panel for each other condition: if they were pooled, their differences would look like differences between seeds."""
    is_compared = axis == results.study.compare
    scores: dict[tuple[str, str, str], dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for result in results.finals:
        label = result.run.cell.get(axis)
        rest = "" if is_compared else condition_of(results.study, result.run.cell, axis)
        for data in results.data:
            score = result.score(data)
            if label in results.study.axes[axis] and score is not None:
                curves = scores[rest, data, result.metric]
                curve = curves.setdefault(result.condition if is_compared else result.line, {})
                curve.setdefault(str(label), []).append(score)
    return [
        _Panel(
            ", ".join(filter(None, (rest, data if len(results.data) > 1 else ""))),
            f"{data} {metric}",
            {name: {label: summarize(s) for label, s in curve.items()} for name, curve in curves.items()},
        )
        for (rest, data, metric), curves in scores.items()
    ]


def _numbers(results: StudyResults, axis: str) -> tuple[Mapping[str, float] | None, str]:
    """The positions of the labels on an axis of numbers, or None if they are names; and the name of the axis."""
    name, options = axis.split(".")[-1], results.study.axes[axis]
    if all(re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", label) for label in options):
        return {label: float(label) for label in options}, name
    if all("backbone" in option.changes for option in options.values()):
        sizes = {
            r.run.cell[axis]: float(size)
            for r in results.finals
            if axis in r.run.cell and (size := r.outcome.facts.get("backbone_parameters"))
        }
        if sizes.keys() >= options.keys() and len(set(sizes.values())) > 1:
            return sizes, "parameters of the backbone"
    return None, name


def _by_number(axis: str, name: str, numbers: Mapping[str, float], panels: Sequence[_Panel]) -> Plot:
    names = list(dict.fromkeys(curve for panel in panels for curve in panel.series))
    values = sorted(numbers.values())

    def draw(ink: str) -> Figure:
        figure, all_axes = panels_of(len(panels), ink)
        for axes, panel in zip(all_axes, panels, strict=True):
            for curve, found in panel.series.items():
                colour, mark = style(names.index(curve))
                points = sorted((numbers[label], summary) for label, summary in found.items())
                axes.errorbar(
                    [value for value, _ in points],
                    [summary.mean for _, summary in points],
                    yerr=[summary.std or 0 for _, summary in points],
                    fmt=f"{mark}-",
                    color=colour,
                    capsize=3,
                    markersize=4,
                    label=plain(curve),
                )
            if values[0] > 0 and values[-1] >= 10 * values[0]:
                axes.set_xscale("log")
            axes.set_title(plain(panel.title), color=ink, fontsize=10)
            axes.set_xlabel(plain(name))
            axes.set_ylabel(plain(panel.metric))
        legend(figure, all_axes, ink)
        return figure

    words = "; ".join(
        f"{_told(panel, curve)}: " + ", ".join(f"{label}: {s.mean:.3f}" for label, s in found.items())
        for panel in panels
        for curve, found in panel.series.items()
    )
    return _plot(axis, name, panels, f" {words}.", draw)


def _plot(axis: str, name: str, panels: Sequence[_Panel], words: str, draw: Callable[[str], Figure]) -> Plot:
    metrics = " / ".join(dict.fromkeys(panel.metric for panel in panels))
    return Plot(
        f"by-{axis.replace('.', '-')}",
        f"Score by {name}",
        f"{metrics} by {name}, mean and standard deviation over seeds.{words}",
        draw,
    )


def _told(panel: _Panel, curve: str) -> str:
    return ", ".join(filter(None, (panel.title, curve))) or panel.metric
