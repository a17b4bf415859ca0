"""A package registry on this machine: a simple index and archives, with the faults that a test asks for."""

from __future__ import annotations

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from softprompt.zoo import Archive


class Registry(ThreadingHTTPServer):
    """Serves `pages` by path and records what was asked for.

    ranges: whether Range is understood. cut_after: bytes of each archive's body after which the connection
    ends, per request in turn; answers after the last entry are whole.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, tuple[str, bytes]] = {}
        self.ranges = True
        self.cut_after: list[int] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked_for(self, filename: str) -> list[str | None]:
        """Range headers of the requests for a file, in order; None where there was none."""
        return [ranges for path, ranges in self.asked if path.endswith(filename)]

    def offer(self, archive: Archive, content: bytes, *, html: bool = False) -> None:
        """List an archive on its project's page, under its simple index, and serve `content` for it."""
        self.pages[f"/files/{archive.filename}"] = ("application/octet-stream", content)
        link = f"../../files/{archive.filename}"
        if html:
            page = (
                f'<!DOCTYPE html><html><body><a href="{link}#sha256=x">{archive.filename}</a></body></html>'
            )
            self.pages[f"/simple/{archive.package}/"] = ("text/html", page.encode())
        else:
            index = {
                "files": [{"filename": archive.filename, "url": link, "hashes": {}}],
                "name": archive.package,
            }
            kind = "application/vnd.pypi.simple.v1+json"
            self.pages[f"/simple/{archive.package}/"] = (kind, json.dumps(index).encode())


class _Handler(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        asked_range = self.headers.get("Range")
        self.server.asked.append((self.path, asked_range))
        if self.path not in self.server.pages:
            self.send_error(404)
            return
        kind, content = self.server.pages[self.path]
        start = 0
        if asked_range and self.server.ranges:
            start = int(asked_range.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path.startswith("/files/") and self.server.cut_after:
            body = body[: self.server.cut_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing: the requests are in `asked`."""


@contextmanager
def running_registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def zip_of(files: dict[str, str]) -> bytes:
    """The bytes of a zip file with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def archive_of(
    content: bytes,
    filename: str = "little_words-1.0-py3-none-any.whl",
    package: str = "little-words",
    keep_only: tuple[str, ...] = (),
) -> Archive:
    """The description of an archive with these bytes."""
    return Archive(
        registry="pypi",
        package=package,
        version="1.0",
        filename=filename,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        keep_only=keep_only,
    )
