"""How a study's plots are drawn: the class of a plot, panels and legends in the page's text colour, colours and markers."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette without its black and yellow: told apart by colour-blind readers, on white and on black.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_MARKS = "osD^vPX*"
_INK = "#010203"  # stands for the page's own text colour, which an SVG in a page takes over


@dataclass(frozen=True)
class Plot:
    """A plot: its file name, its title, a sentence that describes it, and the function that draws it in a given text colour."""

    name: str
    title: str
    alternative: str
    draw: Callable[[str], Figure]

    def svg(self) -> str:
        """The SVG for use inside a page: without declarations and addresses, with text in the page's own colour."""
        text = self._saved("svg", _INK).decode()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r' xmlns:?\w*="[^"]*"', "", text)
        text = text.replace("xlink:href", "href").replace(_INK, "currentColor")
        return text.replace("<svg", f'<svg role="img" aria-label="{escape(self.alternative)}"', 1)

    def file(self) -> str:
        """The SVG as a file of its own."""
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


def panels_of(count: int, ink: str, *, columns: int = 2, height: float = 3.6) -> tuple[Figure, list[Any]]:
    """A figure with a number of panels in rows of up to `columns`, each of the given height in inches."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(6.4 if columns == 1 else 4 * columns, height * rows), layout="constrained")
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


def legend(figure: Figure, panels: Sequence[Any], ink: str) -> None:
    """A legend for all panels, below them so that it covers no line; the figure grows by its height."""
    shown = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        if label
    }
    if len(shown) < 2:
        return
    columns = 1 if max(map(len, shown)) > 40 else 2
    figure.set_figheight(figure.get_figheight() + 0.2 * -(-len(shown) // columns))
    figure.legend(
        list(shown.values()),
        list(shown),
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        labelcolor=ink,
        fontsize=9,
    )


def style(i: int) -> tuple[str, str]:
    """Colour and marker of the i-th compared option, the same in every plot."""
    return _COLOURS[i % len(_COLOURS)], _MARKS[i % len(_MARKS)]


def plain(text: str) -> str:
    """The text without characters that matplotlib reads as a formula or that a legend would leave out."""
    return text.replace("$", r"\$").lstrip("_")
