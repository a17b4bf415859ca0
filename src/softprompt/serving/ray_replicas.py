"""The same app on a Ray cluster: replicas that all hold all prompts, behind Ray Serve's proxy.

A request goes to any replica. Prompts that are added or removed over HTTP are written on a board, which all replicas read;
the request is answered when every living replica has done the same. A replica that is lost is started again by Ray, follows
the folder, and catches up from the board. Requests that were under way in it end with status 500, which official clients of
OpenAI's API ask again. Needs the extras `serve` and `ray`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from fastapi import FastAPI

from softprompt.backbones.base import Backbone
from softprompt.serving.app import create_app
from softprompt.serving.engine import Engine
from softprompt.serving.gate import LOOPBACK
from softprompt.serving.keys import read_keys
from softprompt.serving.settings import Settings
from softprompt.tuned import TunedPrompt

log = logging.getLogger(__name__)

NAME = "softprompt"
_LOOK_SECONDS = 0.1  # between two looks at the board
_GONE_SECONDS = 3.0  # a replica that has not looked for so long is not waited for
_TELL_SECONDS = 15.0


@dataclass(frozen=True)
class Change:
    """A prompt that was added from a folder, or removed (no folder)."""

    name: str
    folder: str | None
    overwrite: bool = False


class Board:
    """What was changed over HTTP, in order, and how far each replica has read. An actor of its own."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._read: dict[str, tuple[int, float]] = {}

    def write(self, change: Change) -> int:
        """Returns the number of changes with this one."""
        self._changes.append(change)
        return len(self._changes)

    def look(self, replica: str, done: int) -> list[Change]:
        """The changes behind the first `done`, which the replica has made."""
        self._read[replica] = done, time.monotonic()
        return self._changes[done:]

    def all_have(self, count: int) -> bool:
        """Whether every replica that still looks here has made the first `count` changes."""
        alive = [done for done, at in self._read.values() if time.monotonic() - at < _GONE_SECONDS]
        return all(done >= count for done in alive)


class Replica(Engine):
    """An engine whose prompts come and go with those of the other replicas.

    board  the actor that they share
    """

    def __init__(self, backbone: Backbone, folder: Path, settings: Settings, board: Any) -> None:
        super().__init__(backbone, folder, settings)
        self._board = board
        self._id = uuid.uuid4().hex
        self._done = 0
        self._changing = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await super().start()
        await self._look()
        self._looking = asyncio.create_task(self._keep_looking(), name="softprompt-board")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
            self._looking = None
        await super().close()

    async def add(
        self, name: str, prompt: TunedPrompt | str | Path, *, overwrite: bool = False
    ) -> dict[str, Any]:
        described = await super().add(name, prompt, overwrite=overwrite)
        if not isinstance(prompt, TunedPrompt):
            await self._tell(Change(name, str(prompt), overwrite=True))
        return described

    async def remove(self, name: str) -> None:
        await super().remove(name)
        await self._tell(Change(name, None))

    async def _tell(self, change: Change) -> None:
        count = await self._board.write.remote(change)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TELL_SECONDS):
                await self._look()
                while not await self._board.all_have.remote(count):
                    await asyncio.sleep(_LOOK_SECONDS / 2)

    async def _look(self) -> None:
        async with self._changing:
            for change in await self._board.look.remote(self._id, self._done):
                await self._make(change)
                self._done += 1
            await self._board.look.remote(self._id, self._done)

    async def _make(self, change: Change) -> None:
        try:
            if change.folder is not None:
                await super().add(change.name, change.folder, overwrite=change.overwrite)
            elif change.name in self.registry:
                await super().remove(change.name)
        except (ValueError, OSError):
            log.exception("what another replica did with %s cannot be done here", change.name)

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self._look()
            except Exception:
                log.exception("the board of prompts cannot be read")


@dataclass(frozen=True)
class Plan:
    """What a replica is made of; every node of the cluster must see the folder, the backbone and the keys by the same path.

    open    gives the backbone
    folder  with the prompts
    keys    file with API keys; None: everybody may do everything
    hosts   names that requests may give
    """

    open: Callable[[], Backbone]
    folder: Path
    settings: Settings
    keys: Path | None = None
    hosts: Collection[str] = LOOPBACK


def replica_app(plan: Plan, board: Any) -> FastAPI:
    """The app of one replica, made where it runs."""
    engine = Replica(plan.open(), plan.folder.resolve(), plan.settings, board)
    keys = None if plan.keys is None else read_keys(plan.keys)
    return create_app(engine, keys=keys, hosts=plan.hosts)


class RayServer:
    """The replicas, from `with` to its end.

    plan      of each replica
    replicas  how many
    host, port  that Ray Serve's proxy listens on
    cpus      of each replica; where the cluster has GPUs, each replica takes one

    The cluster is the one that is connected to, else that of RAY_ADDRESS, else one is started here that ends with the server.
    Raises ValueError without the packages.
    """

    def __init__(
        self, plan: Plan, *, replicas: int = 2, host: str = "127.0.0.1", port: int = 8000, cpus: float = 1
    ) -> None:
        self.plan, self.replicas, self.host, self.port, self.cpus = plan, replicas, host, port, cpus
        self._ray, self._serve = _packages()
        self._is_ours = False
        self._board: Any = None

    @property
    def address(self) -> str:
        """http://HOST:PORT"""
        return f"http://{self.host}:{self.port}"

    def __enter__(self) -> RayServer:
        ray, serve = self._ray, self._serve
        if not ray.is_initialized():
            os.environ.setdefault(
                "RAY_USAGE_STATS_ENABLED", "0"
            )  # a cluster that is started here tells nobody
            self._is_ours = "RAY_ADDRESS" not in os.environ
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        try:
            self._board = ray.remote(Board).options(num_cpus=0, max_restarts=-1).remote()
            serve.start(http_options={"host": self.host, "port": self.port})
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
            plan, board = self.plan, self._board

            def build() -> FastAPI:  # in each replica
                return replica_app(plan, board)

            deployment = serve.deployment(
                serve.ingress(build)(),
                name=NAME,
                num_replicas=self.replicas,
                max_ongoing_requests=self.plan.settings.max_connections,
                ray_actor_options={"num_cpus": self.cpus, "num_gpus": gpus},
                health_check_period_s=1,
            )
            serve.run(
                deployment.bind(), name=NAME, route_prefix="/", logging_config={"enable_access_log": False}
            )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._serve.shutdown()
        if self._board is not None:
            self._ray.kill(self._board)
        if self._is_ours:
            self._ray.shutdown()


def _packages() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ValueError(
            f"--engine ray needs packages that are not installed ({error.name}): pip install 'softprompt[serve,ray]'"
        ) from error
    return ray, serve


def wait_for_a_signal() -> None:
    """Return at SIGTERM or Ctrl-C."""
    ended = threading.Event()
    before = {one: signal.signal(one, lambda *_: ended.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        while not ended.wait(0.5):
            pass
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
