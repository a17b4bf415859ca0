"""POST /v1/prompts and DELETE /v1/prompts/NAME: prompts come and go while the server runs."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.serving.errors import BadRequestError, NotAllowedError
from softprompt.serving.request_bodies import PromptBody, read_body
from softprompt.serving.service import Service, record_of


def routes(service: Service) -> APIRouter:
    """Both."""
    router = APIRouter()
    engine = service.engine

    @router.post("/v1/prompts")
    async def add(request: Request) -> Response:
        _check_manages(request)
        body = await read_body(request, PromptBody, service.settings)
        folder = inside(engine.folder, body.name if body.folder is None else body.folder)
        replaces = body.name in engine.registry
        try:
            described = await engine.add(body.name, folder, overwrite=body.overwrite)
        except (ValueError, OSError) as error:
            # The message of an OSError names paths of this machine.
            said = "it cannot be read" if isinstance(error, OSError) else str(error)
            raise BadRequestError(f"{body.name[:128]} is not served: {said}", param="folder") from error
        return JSONResponse(described, 200 if replaces else 201)

    @router.delete("/v1/prompts/{name}")
    async def remove(request: Request, name: str) -> Response:
        _check_manages(request)
        service.entry(request, name)
        record_of(request).prompt = ""  # it is counted no longer
        await engine.remove(name)
        service.metrics.forget(name)
        return JSONResponse({"id": name, "object": "prompt", "deleted": True})

    return router


def _check_manages(request: Request) -> None:
    if not record_of(request).caller.may_manage:
        raise NotAllowedError("this key may not add or remove prompts: it has no `manage: true`")


def inside(root: Path | None, folder: str) -> Path:
    """A folder with a saved prompt inside the served one. Raises BadRequestError for anything else, links that lead out too."""
    if root is None:
        raise BadRequestError("this server has no folder of prompts: none can be added over HTTP")
    try:
        found = (root / folder).resolve()
        there = any(
            (at / "prompt.json").is_file() and root in (at / "prompt.json").resolve().parents
            for at in (found, found / "prompt")
        )
    except (OSError, ValueError):  # too long, a null character
        there = False
    if not there or root not in found.parents:
        raise BadRequestError(
            f"{folder[:128]!r} is no saved prompt inside the served folder: give a path relative to it",
            param="folder",
        )
    return found
