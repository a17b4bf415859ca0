"""The server as an ASGI app: routes of OpenAI's shape on an engine. Needs the extra `serve`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from softprompt.serving.engine import Engine
from softprompt.serving.errors import ServingError
from softprompt.serving.gate import LOOPBACK, Gate
from softprompt.serving.keys import Keyring
from softprompt.serving.metrics import Metrics
from softprompt.serving.refusals import refuse
from softprompt.serving.routes import chat, classify, completions, health, models, playground, prompts
from softprompt.serving.service import Service
from softprompt.version import __version__


def create_app(engine: Engine, *, keys: Keyring | None = None, hosts: Collection[str] = LOOPBACK) -> FastAPI:
    """The app, which starts the engine and closes it at its end.

    engine  not started yet
    keys    who may ask; None: everybody may do everything
    hosts   names that requests may give in their Host header; "*": any
    """
    service = Service(engine, keys or Keyring(), Metrics(engine))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine:
            yield

    # Pages that describe the app would load scripts from elsewhere.
    app = FastAPI(
        title="softprompt",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    for file in (models, classify, completions, chat, prompts, health):
        app.include_router(file.routes(service))
    app.include_router(playground.routes())
    app.add_exception_handler(ServingError, refuse)
    app.add_exception_handler(HTTPException, refuse)
    app.add_middleware(Gate, keys=service.keys, metrics=service.metrics, hosts=hosts)
    return app
