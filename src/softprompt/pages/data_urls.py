"""Files inside a page, as addresses that hold their content."""

from __future__ import annotations

import base64


def data_url(content: bytes | str, kind: str) -> str:
    """Return an address that holds the content. kind: its media type, such as "image/png"."""
    content = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64," + base64.b64encode(content).decode("ascii")
