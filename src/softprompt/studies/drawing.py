"""How a study's plots are drawn: the class of a plot, panels and legends in the page's text colour, colours and markers."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from softprompt.errors import printable

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
        """The SVG for use inside a page: text in the page's own colour, points that say under the pointer what they are."""
        figure = self.draw(_INK)
        series, told = _tell_points(figure, self.name)
        root = ElementTree.fromstring(self._saved(figure, "svg", transparent=True))
        for part in root.iter():
            part.tag = part.tag.rpartition("}")[2]
            for name in [name for name in part.attrib if "}" in name]:
                part.attrib[name.rpartition("}")[2]] = part.attrib.pop(name)
            for sentence, point in zip(told.get(part.get("id", ""), ()), _marks(part), strict=False):
                point.set("data-tip", sentence)
            if part.get("id") in told:
                part.set("data-series", series[part.attrib["id"]])
        for metadata in root.findall("metadata"):
            root.remove(metadata)
        for size in ("width", "height"):
            root.attrib.pop(size)
        root.attrib |= {"role": "img", "aria-label": printable(self.alternative)}
        return ElementTree.tostring(root, encoding="unicode").replace(_INK, "currentColor")

    def file(self) -> str:
        """The SVG as a file of its own."""
        return self._saved(self.draw("black"), "svg").decode()

    def png(self) -> bytes:
        return self._saved(self.draw("black"), "png")

    def _saved(self, figure: Figure, kind: str, *, transparent: bool = False) -> bytes:
        # A salt for each picture: ids of pictures in one page must differ, and a second report be the same as the first.
        with mpl.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "none", "font.family": "sans-serif"}):
            stream = io.BytesIO()
            metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {}
            figure.savefig(stream, format=kind, metadata=metadata, transparent=transparent, dpi=150)
        return stream.getvalue()


def _tell_points(figure: Figure, name: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Give each series an id, and return by this id its name, and what its points say."""
    series: dict[str, str] = {}
    told: dict[str, list[str]] = {}
    for axes in figure.axes:
        labelled = [(line, str(line.get_label())) for line in axes.get_lines()]
        labelled += [
            (bars.lines[0], str(bars.get_label()))
            for bars in axes.containers
            if isinstance(bars, ErrorbarContainer)
        ]
        for line, label in labelled:
            if label.startswith("_") or line.get_marker() in ("None", "", None):
                continue
            identity = f"{name}-series-{len(told)}"
            line.set_gid(identity)
            series[identity] = label
            points = np.asarray(line.get_xydata(), dtype=float)
            name_and_axis = f"{label}, {axes.get_xlabel()}".replace(r"\$", "$")
            told[identity] = [f"{name_and_axis} {x:,.6g}: {y:.4g}" for x, y in points.tolist()]
    return series, told


def _marks(part: ElementTree.Element) -> list[ElementTree.Element]:
    return [mark for mark in part.iter() if mark.tag.endswith("use")]


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
    """The text without what matplotlib reads as a formula, what a legend would leave out, and what no XML may hold."""
    return printable(text).replace("$", r"\$").lstrip("_")
