"""The parts of a study's HTML page: tables, heat maps, pictures. Every text is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from softprompt.studies.drawing import Plot
from softprompt.studies.tables import Table

STYLE = """
:root { color-scheme: light dark;
  --ink: #1a1a1a; --page: #ffffff; --line: #cccccc; --soft: #555555; --heat: 11 92 173; --most: .6; --note: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --page: #16181b; --line: #44484d; --soft: #b0b0b0; --heat: 127 192 255; --most: .4;
          --note: #3a3117; }
}
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--page); }
h1, h2, h3 { line-height: 1.2; overflow-wrap: anywhere; } h2 { margin-top: 2.5rem; }
.wide { overflow-x: auto; }
.told, caption, figcaption { color: var(--soft); }
table { border-collapse: collapse; margin: .5rem 0; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th[scope=row] { white-space: normal; min-width: min(14rem, 36vw); overflow-wrap: anywhere; }
th[scope=col] { white-space: normal; vertical-align: bottom; }
th:first-child, .text { text-align: left; }
tr.best { font-weight: 600; }
td[style] { background: rgb(var(--heat) / calc(var(--most) * var(--share))); }
figure { margin: 1rem 0; } figure svg { width: 100%; min-width: 30rem; max-width: 52rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
@media (min-width: 50rem) { dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.5rem; } dd { margin: 0; } }
.note { background: var(--note); padding: .5rem 1rem; border-radius: .3rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; overflow-wrap: anywhere; } details { margin: .4rem 0; }
"""


def table(content: Table, name: str, told: str = "", best: str = "") -> str:
    """An HTML table, which scrolls by itself if it is wider than the window.

    name  for screen readers
    told  a sentence for the reader
    best  the first cell of the row to highlight
    """
    heads, rows = content
    is_text = [not all(_NUMBER.match(cell) for cell in column) for column in zip(*rows, strict=True)]
    of = [' class="text"' if text else "" for text in is_text] or [""] * len(heads)
    top = "".join(
        f'<th scope="col"{kind}>{escape(head)}</th>' if head else "<td></td>"
        for head, kind in zip(heads, of, strict=True)
    )
    body = "".join(
        f'<tr{" class=best" if best and row[0] == best else ""}><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row[1:], of[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    above = f'<p class="told">{escape(told)}</p>' if told else ""
    return (
        f'{above}<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0"><table aria-label="{escape(name)}">'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


_NUMBER = re.compile(r"[-+]?\d|$")  # or nothing


def heat_map(columns: Sequence[str], rows: Mapping[str, Sequence[tuple[str, float]]], name: str) -> str:
    """A table of cells, each a text and its heat between 0 and 1; a row may be short."""
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for row, found in rows.items():
        cells = "".join(f'<td style="--share: {heat:.2f}">{escape(text)}</td>' for text, heat in found)
        body += (
            f'<tr><th scope="row">{escape(row)}</th>{cells}{"<td></td>" * (len(columns) - len(found))}</tr>'
        )
    return (
        f'<div class="wide" role="region" aria-label="{escape(name)}" tabindex="0"><table>'
        f"<caption>{escape(name)}</caption><thead><tr><td></td>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def picture(plot: Plot) -> str:
    return (
        f"<h2>{escape(plot.title)}</h2><figure>"
        f'<div class="wide" role="region" aria-label="{escape(plot.title)}" tabindex="0">{plot.svg()}</div>'
        f"<figcaption>{escape(plot.alternative)}</figcaption></figure>"
    )
