"""Tables in Markdown, as the pages of results have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(heads: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """The first column is text, the others are numbers."""
    first, *rows = [f"| {' | '.join(row)} |" for row in [heads, *body]]
    return "\n".join([first, "|---|" + "---:|" * (len(heads) - 1), *rows]) + "\n"
