"""The app on a socket: in this thread until a signal ends it, or in a thread of its own for notebooks and tests."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection, Coroutine
from types import TracebackType
from typing import Any, TypeVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from softprompt.serving.app import create_app
from softprompt.serving.engine import Engine
from softprompt.serving.gate import LOOPBACK
from softprompt.serving.keys import Keyring
from softprompt.serving.settings import Settings

T = TypeVar("T")

_KEEP_ALIVE = 30  # seconds that an idle connection is kept


class Server(uvicorn.Server):
    """A server on a socket that is bound already. SIGTERM and Ctrl-C end it: it accepts nothing more, and what runs has
    `drain_seconds` to end.

    engine      not started yet
    host, port  to listen on; port 0: a free one
    keys, hosts as `create_app` has them; `host` is one of the hosts unless it stands for all addresses
    on_up       is called when prompts are loaded and requests are answered

    `address` is http://HOST:PORT. Raises OSError for an address that cannot be had.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        keys: Keyring | None = None,
        hosts: Collection[str] = LOOPBACK,
        on_up: Callable[[], None] = lambda: None,
    ) -> None:
        settings = engine.settings
        own = [] if host in ("0.0.0.0", "::", "") else [host]
        self.socket = _bound(host, port)
        name, number = self.socket.getsockname()[:2]
        self.address = f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}"
        self.on_up = on_up
        self.up = threading.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        super().__init__(
            uvicorn.Config(
                create_app(engine, keys=keys, hosts=[*hosts, *own]),
                http=_bounded(settings),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=int(settings.drain_seconds),
            )
        )

    def listen(self) -> None:
        """Serve until a signal."""
        self.run(sockets=[self.socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.up.set()
        if self.started:
            self.on_up()


class BackgroundServer:
    """A server in a thread of its own, for notebooks.

    with BackgroundServer(Engine(backbone, "prompts")) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none")

    options  of `Server`; the port is a free one unless it is given
    """

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self.server = Server(engine, **{"port": 0, **options})
        self._thread = threading.Thread(target=self._run, name="softprompt-serve", daemon=True)
        self._error: BaseException | None = None

    @property
    def address(self) -> str:
        """http://HOST:PORT"""
        return self.server.address

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """What a coroutine of the engine returns, run where the engine runs: `server.call(server.engine.add(name, tuned))`."""
        if self.server.loop is None:
            raise RuntimeError("the server does not run: use it in a with block")
        return asyncio.run_coroutine_threadsafe(work, self.server.loop).result()

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        self.server.up.wait()
        if self._error is not None:
            raise RuntimeError("the server did not start; its log says why") from self._error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        try:
            self.server.listen()
        except BaseException as error:  # uvicorn ends a failed start by SystemExit
            self._error = error
        finally:
            self.server.up.set()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where the protocol is named: without it each answer comes 40 ms late.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}; try another --port") from error
    return listening


def _bounded(settings: Settings) -> type[asyncio.Protocol]:
    """uvicorn's protocol with an end to patience: it would wait for ever for a request's head, and for a client that does not
    read its answer."""

    class BoundedProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                _cancel(self._head)
                self._head = None
            elif self._head is None:
                self._await_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stall = self.loop.call_later(settings.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            _cancel(self._stall)

        def connection_lost(self, exc: Exception | None) -> None:
            _cancel(self._head)
            _cancel(self._stall)
            super().connection_lost(exc)

        def _await_head(self) -> None:
            self._head = self.loop.call_later(settings.stall_seconds, self.transport.abort)

    return BoundedProtocol


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
