"""Texts on their way to a client as server-sent events, as OpenAI writes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from softprompt.serving.errors import ServingError
from softprompt.serving.refusals import error_body
from softprompt.serving.requests import TextRequest
from softprompt.serving.service import ended

DONE = b"data: [DONE]\n\n"

Item = tuple[int, str | None]
"""The number of a text with its next piece, or None where the text has ended."""


async def merged(texts: Sequence[TextRequest]) -> AsyncGenerator[Item]:
    """The pieces of several texts as they come. What one of them raises ends them all."""
    items: asyncio.Queue[Item | Exception] = asyncio.Queue()

    async def read(number: int, text: TextRequest) -> None:
        try:
            async for piece in text:
                items.put_nowait((number, piece))
            items.put_nowait((number, None))
        except Exception as error:
            items.put_nowait(error)

    tasks = [asyncio.create_task(read(*one)) for one in enumerate(texts)]
    try:
        left = len(texts)
        while left:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            left -= item[1] is None
            yield item
    finally:
        await ended(*tasks)


def event(data: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


async def events(
    pieces: AsyncIterator[Item],
    first: Item,
    as_chunks: Callable[[Item], list[Any]],
    last: Callable[[], list[Any]],
    on_end: Callable[[str], None],
) -> AsyncIterator[bytes]:
    """The events of a stream. An error on the way is an event of its own, after which nothing comes.

    first      item, which was waited for before the answer began, so that early errors have their status
    as_chunks  the chunks of an item
    last       the chunks after all items
    on_end     is told that all is said, "", or what went wrong
    """
    try:
        item: Item | None = first
        while item is not None:
            for chunk in as_chunks(item):
                yield event(chunk)
            item = await anext(pieces, None)
        for chunk in last():
            yield event(chunk)
        on_end("")
        yield DONE
    except ServingError as error:
        on_end(error.code)
        yield event(error_body(error))


class EventResponse(StreamingResponse):
    """A stream of events. `close` is called at its end, whatever ended it, even where nothing of it was sent."""

    def __init__(self, content: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        self._close = close  # the header lets proxies pass each event on at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._close()
