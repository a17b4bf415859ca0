"""What every request passes: host, key, request id, log line, metrics. A path that is not open needs a key, whichever it is."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softprompt.serving.errors import BadRequestError, ServingError
from softprompt.serving.keys import Caller, Keyring
from softprompt.serving.metrics import Metrics
from softprompt.serving.refusals import refusal

log = logging.getLogger("softprompt.serving")
access_log = logging.getLogger("softprompt.serving.access")

LOOPBACK = ("localhost", "127.0.0.1", "::1")
OPEN_PATHS = ("/health", "/ready")
"""Paths that need no key and no right host: probes come by address. They say nothing about prompts or texts."""

KEYLESS_PATHS = ("/",)
"""Paths that need no key, as they say nothing of this server."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(:\d+)?")


@dataclass
class RequestRecord:
    """What the log says of a request. It holds no text, and no name that is not served."""

    request_id: str
    caller: Caller
    prompt: str = ""
    rows: int = 0
    read_tokens: int = 0
    written_tokens: int = 0
    status: int = 0
    error: str = ""
    since: float = field(default_factory=time.perf_counter)

    def line(self, scope: Scope, route: str) -> str:
        """One line of JSON."""
        return json.dumps(
            {
                "request_id": self.request_id,
                "method": scope["method"],
                "route": route,
                "status": self.status,
                "milliseconds": round((time.perf_counter() - self.since) * 1000, 1),
                "key": self.caller.name,
                "prompt": self.prompt,
                "rows": self.rows,
                "read_tokens": self.read_tokens,
                "written_tokens": self.written_tokens,
                "error": self.error,
            }
        )


class Gate:
    """ASGI middleware.

    hosts  names that a Host header may give: another means that a browser was led here by a foreign page; "*": any
    """

    def __init__(self, app: ASGIApp, *, keys: Keyring, metrics: Metrics, hosts: Collection[str]) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics
        self.hosts = frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        record = RequestRecord(request_id, Caller(None))
        scope.setdefault("state", {})["record"] = record

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                more = MutableHeaders(scope=message)
                more["x-request-id"] = request_id
                more["x-content-type-options"] = "nosniff"
                more["cache-control"] = "no-store"
            await send(message)

        try:
            try:
                self._admit(scope, headers, record)
                await self.app(scope, receive, answer)
            except Exception as error:
                if not isinstance(error, ServingError):
                    log.exception("request %s failed", request_id)
                    error = ServingError("the server failed at this request; its log says why")
                record.error = record.error or error.code
                if record.status:  # the answer has begun: it can only be broken off
                    raise
                await refusal(error)(scope, receive, answer)
        finally:
            self._tell(scope, record)

    def _admit(self, scope: Scope, headers: Headers, record: RequestRecord) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        host = _HOST.fullmatch(headers.get("host", ""))
        name = host["name"].strip("[]").lower().rstrip(".") if host else ""
        if "*" not in self.hosts and name not in self.hosts:
            raise BadRequestError(
                f"this server is not called {name[:128]!r}: start it with --allow-host {name[:128] or 'NAME'}",
                param="host",
            )
        if scope["path"] in KEYLESS_PATHS:
            return
        record.caller = self.keys.caller(headers.get("authorization"))
        record.caller.take_request()

    def _tell(self, scope: Scope, record: RequestRecord) -> None:
        route: Any = getattr(scope.get("route"), "path", "other")
        self.metrics.answered(route, record.status or 499, time.perf_counter() - record.since)
        if record.prompt:
            self.metrics.used(record.prompt, record.rows, record.read_tokens, record.written_tokens)
        access_log.info("%s", record.line(scope, route))
