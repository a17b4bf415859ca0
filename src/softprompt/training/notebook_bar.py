"""A bar in a notebook: HTML that the front end replaces in place, and that is saved with the notebook."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from softprompt.training.progress_line import Standing, line

Display = Callable[[str], Callable[[str], None]]
"""Shows HTML, and returns the function that replaces it."""


def notebook_bar(standing: Standing) -> str:
    """The bar as HTML, with its words beside it."""
    words = escape(line(standing))
    return (
        f'<progress value="{standing.done}" max="{max(1, standing.steps)}" style="width: 16em; vertical-align: middle"'
        f' aria-label="{words}"></progress> <span style="font-family: monospace">{words}</span>'
    )


def notebook_display(html: str) -> Callable[[str], None]:
    """Show HTML below the running cell."""
    from IPython.display import HTML, display

    shown = display(HTML(html), display_id=True)
    return lambda changed: shown.update(HTML(changed))
