"""Dot plots: every seed's score, mean, interval and the commonest label's score; as values of a page and as files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softprompt.studies.drawing import Plot, panels_of, plain, style
from softprompt.studies.finding import in_points
from softprompt.studies.results import StudyResults
from softprompt.studies.statistics import Summary


@dataclass(frozen=True)
class Dots:
    """The scores under one condition on one data set, the best line first.

    lines   name -> scores by seed, and their summary
    chance  of always giving the commonest label; None: unknown
    ends    of the axis
    """

    name: str
    metric: str
    lines: dict[str, tuple[dict[int, float], Summary]]
    chance: float | None
    rows: int | None
    ticks: tuple[float, ...]

    @property
    def ends(self) -> tuple[float, float]:
        return self.ticks[0], self.ticks[-1]


def dots_of(results: StudyResults) -> list[Dots]:
    """One for each condition and data set that has scores."""
    found = []
    for condition in results.conditions:
        for data in results.data:
            lines = {
                line: (results.scores(line, condition, data), summary)
                for line in results.lines
                if (summary := results.summary(line, condition, data)) is not None
            }
            if lines:
                lines = dict(sorted(lines.items(), key=lambda item: -item[1][1].mean))
                chance = results.majority(condition, data)
                values = [
                    value for scores, s in lines.values() for value in (*scores.values(), s.low, s.high)
                ]
                name = ", ".join(filter(None, (condition, data if len(results.data) > 1 else "")))
                metric = results.metric(condition)
                ticks = _ticks([value for value in (*values, chance) if value is not None])
                found.append(Dots(name, metric, lines, chance, results.row_count(condition, data), ticks))
    return found


def dot_values(results: StudyResults, dots: Dots) -> dict[str, Any]:
    """The values that the page's template draws: places in percent of the axis, numbers as texts, sentences."""
    low, high = dots.ends

    def at(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    lines = []
    for place, (line, (scores, summary)) in enumerate(dots.lines.items()):
        inside = summary.low is not None and summary.high is not None
        text = in_points(summary.mean, dots.metric)
        if summary.low is not None and summary.high is not None:
            text += f"  [{in_points(summary.low, dots.metric)}, {in_points(summary.high, dots.metric)}]"
        alike: Counter[float] = Counter()
        seeds = []
        for seed, score in sorted(scores.items()):
            said = f"{line}, seed {seed}: {in_points(score, dots.metric)}"
            seeds.append({"at": at(score), "row": _beside(alike[score]), "told": said})
            alike[score] += 1
        each = ", ".join(in_points(score, dots.metric) for _, score in sorted(scores.items()))
        lines.append(
            {
                "name": line,
                "best": place == 0 and len(dots.lines) > 1,
                "colour": style(results.lines.index(line))[0],
                "at": at(summary.mean),
                "range": (at(summary.low or 0.0), at(summary.high or 0.0)) if inside else None,
                "seeds": seeds if len(scores) > 1 else [],
                "text": text,
                "told": f"{line}: mean {text}, {'seeds' if len(scores) > 1 else 'one seed'} {each}",
            }
        )
    return {
        "name": dots.name,
        "lines": lines,
        "chance": None if dots.chance is None else at(dots.chance),
        "chance_text": "" if dots.chance is None else in_points(dots.chance, dots.metric),
        "ticks": [{"at": at(tick), "text": _tick(tick, dots)} for tick in dots.ticks],
        "caption": _caption(dots),
    }


def dot_plot(results: StudyResults) -> Plot | None:
    """The same as a file of its own."""
    found = dots_of(results)
    if not found:
        return None

    def draw(ink: str) -> Figure:
        most = max(len(dots.lines) for dots in found)
        figure, panels = panels_of(len(found), ink, columns=1, height=1.1 + 0.36 * most)
        for axes, dots in zip(panels, found, strict=True):
            for place, (line, (scores, summary)) in enumerate(dots.lines.items()):
                colour, mark = style(results.lines.index(line))
                if summary.low is not None and summary.high is not None:
                    axes.plot([summary.low, summary.high], [place] * 2, color=colour, linewidth=2, alpha=0.6)
                axes.plot(
                    [*scores.values()],
                    [place] * len(scores),
                    "o",
                    color=colour,
                    fillstyle="none",
                    markersize=5,
                )
                axes.plot([summary.mean], [place], mark, color=colour, markersize=7)
            if dots.chance is not None:
                axes.axvline(dots.chance, color=ink, linestyle="--", linewidth=0.8)
                axes.text(dots.chance, -0.7, " commonest label", color=ink, fontsize=8)
            axes.set_yticks(range(len(dots.lines)), [plain(_short(line)) for line in dots.lines])
            axes.set_ylim(len(dots.lines) - 0.5, -0.9)
            axes.set_xlim(*dots.ends)
            axes.set_xlabel(plain(dots.metric))
            axes.set_title(plain(dots.name), color=ink, fontsize=10)
        return figure

    return Plot("scores", "Scores by seed", " ".join(_caption(dots) for dots in found[:1]), draw)


def _caption(dots: Dots) -> str:
    counts = sorted({summary.count for _, summary in dots.lines.values()})
    seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    unit = "in percent" if in_points(0.5, dots.metric) == "50.0" else ""
    on = f" on {dots.rows:,} rows" if dots.rows else ""
    ways = []
    if dots.metric == "accuracy" and dots.rows:
        ways += ["Wilson's for one seed"] if counts[0] == 1 else []
        ways += ["a bootstrap over seeds and rows"] if counts[-1] > 1 else []
    elif counts[-1] > 1:
        ways.append("a bootstrap over seeds")
    bar = f" The bar is the 95 % interval: {', '.join(ways)}." if ways else ""
    about = " ".join(filter(None, (dots.metric, unit)))
    return f"{about}{on}; {seeds} seed{'s' * (counts[-1] > 1)}. A ring is a seed, a dot is the mean.{bar}"


def _ticks(values: list[float]) -> tuple[float, ...]:
    """Numbers along an axis that holds all values; from 0 to 1 unless that would leave more than half of it empty."""
    low, high = min(values), max(values)
    is_share = low >= 0 and high <= 1
    if is_share and high - low >= 0.5:
        return (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    room = (high - low) * 0.05 or 0.05
    found = MaxNLocator(5).tick_values(low - room, high + room)
    return tuple(float(tick) for tick in found if not is_share or -1e-9 <= tick <= 1 + 1e-9) or (
        low,
        high + room,
    )


def _tick(value: float, dots: Dots) -> str:
    is_percent = in_points(0.5, dots.metric) == "50.0"
    return f"{100 * value:.4g}" if is_percent else f"{value:.3g}"


def _beside(number: int) -> int:
    """0, -1, 1, -2, 2: where a dot goes whose place is taken."""
    return (number + 1) // 2 * (-1 if number % 2 else 1)


def _short(label: str) -> str:
    return label if len(label) <= 36 else f"{label[:35]}…"
