"""One line of progress that fits its width: what matters most is never cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.text import Text

from softprompt.errors import printable

_SHORTEST_BAR, _LONGEST_BAR = 10, 24  # cells


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    left     seconds that remain; None: not known yet
    metrics  of the last evaluation, the main one first
    rate     such as "2,000 tokens/s"
    name     of the run
    unit     what is counted, if it must be said
    """

    done: int
    steps: int
    left: float | None = None
    loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    rate: str = ""
    name: str = ""
    unit: str = ""

    def words(self) -> tuple[list[str], list[str]]:
        """What is always shown, and what is shown where there is room, by its importance."""
        metrics = [f"{printable(name)} {value:.4g}" for name, value in self.metrics.items()]
        must = [f"{self.unit} {self.done:,}/{self.steps:,}".strip(), clock(self.left), *metrics[:1]]
        loss = [] if self.loss is None else [f"loss {self.loss:.4g}"]
        return [part for part in must if part], [*loss, *([self.rate] if self.rate else []), *metrics[1:]]


def clock(seconds: float | None) -> str:
    """ "0:42 left", "2:05:00 left"; empty if that is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} left" if hours else f"{minutes}:{rest:02} left"


def line(standing: Standing) -> str:
    """All of it in words, for an output that is no terminal."""
    must, more = standing.words()
    return "  ".join([*must, *more])


def fitted(standing: Standing, width: int, *, ascii_only: bool = False) -> Text:
    """A line of at most `width` cells: how far, the remaining time and the main metric, then a bar, the loss, the rate, other
    metrics and the name, as far as there is room."""
    must, more = standing.words()
    taken = sum(map(len, must)) + 2 * (len(must) - 1)
    bar = max(0, min(_LONGEST_BAR, width - taken - 2))
    bar = bar if bar >= _SHORTEST_BAR else 0
    # The bar gives room to words before they are left out, down to its shortest.
    wanted = taken + (_SHORTEST_BAR + 2 if bar else 0)
    shown = []
    for part in [*more, *([standing.name] if standing.name else [])]:
        if wanted + 2 + len(part) > width:
            break
        shown.append(part)
        wanted += 2 + len(part)
    if bar:
        bar = min(_LONGEST_BAR, _SHORTEST_BAR + width - wanted)
    words = "  ".join([*must, *shown])
    found = _bar(standing, bar, ascii_only).append("  ") if bar else Text()
    found.append(words)
    found.truncate(width, overflow="crop" if ascii_only else "ellipsis")
    return found


def _bar(standing: Standing, cells: int, ascii_only: bool) -> Text:
    full = round(cells * min(1.0, standing.done / max(1, standing.steps)))
    sign, rest = ("#", "-") if ascii_only else ("━", "─")
    return Text(sign * full, style="bar.complete").append(rest * (cells - full), style="bar.back")
