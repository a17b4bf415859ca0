"""Tokens of one text on their way from a thread that generates to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable


class TokenStream:
    """Tokens as they come. `async for` gives each once; it ends where the text ends, and raises what went wrong.

    `push`, `end` and `fail` may be called from any thread.
    """

    def __init__(self, on_cancel: Callable[[], None] = lambda: None) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[int | Exception | None] = asyncio.Queue()
        self._on_cancel = on_cancel
        self.cancelled = False

    def push(self, token: int) -> None:
        self._put(token)

    def end(self) -> None:
        self._put(None)

    def fail(self, error: Exception) -> None:
        self._put(error)

    def cancel(self) -> None:
        """Say that nobody wants further tokens; called in the event loop."""
        if not self.cancelled:
            self.cancelled = True
            self._on_cancel()

    def on_cancel(self, function: Callable[[], None]) -> None:
        """What is to be done when nobody wants further tokens."""
        self._on_cancel = function

    async def __aiter__(self) -> AsyncIterator[int]:
        while True:
            item = await self._queue.get()
            if item is None:
                return
            if isinstance(item, Exception):
                raise item
            yield item

    def _put(self, item: int | Exception | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)
