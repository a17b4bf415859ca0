"""GET /: the playground, one page that needs nothing else and asks the server's own routes.

It holds no name, text or key, so it is open; what it shows it asks for with the key that is typed into it.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

_HERE = Path(__file__).parents[1] / "playground"


def routes() -> APIRouter:
    """The page."""
    router = APIRouter()

    @router.get("/")
    async def playground(request: Request) -> Response:
        headers = {"x-frame-options": "DENY", "referrer-policy": "no-referrer"}
        return HTMLResponse(page(), headers=headers)

    return router


@cache
def page() -> str:
    """The page as HTML, whose policy allows its own style and script alone."""
    found = (_HERE / "page.html").read_text(encoding="utf-8")
    for name in ("style.css", "script.js"):
        content = (_HERE / name).read_text(encoding="utf-8")
        kind = name.partition(".")[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        found = found.replace(f"{{{{ {kind}_digest }}}}", digest).replace(f"{{{{ {kind} }}}}", content)
    return found
