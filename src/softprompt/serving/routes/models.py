"""GET /v1/models: what is served, the backbone itself too."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.serving.service import Service, record_of


def routes(service: Service) -> APIRouter:
    """The list, and one of its entries."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        caller = record_of(request).caller
        data: list[dict[str, Any]] = [m for m in service.engine.models() if caller.may_ask(m["id"])]
        return JSONResponse({"object": "list", "data": data})

    @router.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        entry = service.entry(request, name)
        return JSONResponse(service.engine.describe(entry))

    return router
