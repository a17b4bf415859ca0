"""GET /health, /ready and /metrics."""

from __future__ import annotations

import time

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from softprompt.serving.errors import NotAllowedError, ServingError, StoppedError
from softprompt.serving.service import Service, record_of
from softprompt.serving.trial import trial

_TRIAL_LASTS = 5.0  # seconds; /ready needs no key, and must not be a way to keep the server busy


def routes(service: Service) -> APIRouter:
    """All three."""
    router = APIRouter()
    last = {"at": -_TRIAL_LASTS}

    @router.get("/health")
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/ready")
    async def ready(request: Request) -> Response:
        if not service.engine.ready:
            raise StoppedError("the server is starting or stopping", retry_after=1)
        if time.monotonic() - last["at"] >= _TRIAL_LASTS:
            last["at"] = time.monotonic()
            try:
                await trial(service.engine)
            except ServingError as error:
                last["at"] = -_TRIAL_LASTS
                raise StoppedError("a trial row was not answered", retry_after=1) from error
        return JSONResponse({"status": "ready"})

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        if record_of(request).caller.is_restricted:
            raise NotAllowedError("this key may not read metrics: they name prompts that it may not ask")
        return PlainTextResponse(
            service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    return router
