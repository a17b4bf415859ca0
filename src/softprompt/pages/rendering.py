"""Templates become pages: every value is escaped, and a page may load nothing and run no script but its own."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from softprompt.errors import printable
from softprompt.pages.data_urls import data_url

_HERE = Path(__file__).parent


def render(template: str, **values: Any) -> str:
    """Return a template's page as HTML.

    Values are escaped, and control characters in them are shown as codes. A value that is HTML already is given as
    `markupsafe.Markup`. Raises jinja2.UndefinedError for a value that the template asks for and that was not given.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    style, script = (
        (_HERE / name).read_text(encoding="utf-8").strip() for name in ("style.css", "script.js")
    )
    found.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        # A script that got into the page by some text would have another digest, and browsers would not run it.
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }
    found.filters |= {"anchor": _anchor, "data_url": data_url}
    found.tests["number"] = lambda text: re.match(r"[-+−]?[\d.]|$", text) is not None
    return found


def _shown(value: Any) -> Any:
    if isinstance(value, Markup):
        return value
    return printable(value) if isinstance(value, str) else value


def _anchor(title: str) -> str:
    """The title as the name of a place in a page: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
