"""What all routes share: the engine, the keys, the metrics, and work that ends when nobody waits for it any longer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from softprompt.serving.engine import Engine
from softprompt.serving.errors import ClientGoneError
from softprompt.serving.gate import RequestRecord
from softprompt.serving.keys import Keyring
from softprompt.serving.metrics import Metrics
from softprompt.serving.registry import Entry
from softprompt.serving.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    """The parts of a server."""

    engine: Engine
    keys: Keyring
    metrics: Metrics

    @property
    def settings(self) -> Settings:
        return self.engine.settings

    def entry(self, request: Request, name: str) -> Entry:
        """The prompt of a request, if its key may ask it. Raises PromptNotFoundError."""
        record = record_of(request)
        record.caller.check(name)
        entry = self.engine.registry.find(name, hints=not record.caller.is_restricted)
        record.prompt = entry.name
        return entry


def record_of(request: Request) -> RequestRecord:
    """What the log will say of a request."""
    record: RequestRecord = request.state.record
    return record


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The work's result. It is cancelled, and ClientGoneError raised, when the client closes the connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client has gone")
        return task.result()
    finally:
        await ended(task, gone)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order. When one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        await ended(*tasks)


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what still runs, and wait for its end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
