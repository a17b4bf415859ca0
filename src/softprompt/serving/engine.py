"""The engine: many prompts on one backbone, asked from Python's asyncio."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from softprompt.backbones.base import Backbone
from softprompt.outputs import EncodedRow
from softprompt.serving.compiled_cache import CompiledCache
from softprompt.serving.descriptions import described
from softprompt.serving.errors import BadRequestError, QueueFullError, StoppedError, TimedOutError
from softprompt.serving.generate_lane import GenerateLane
from softprompt.serving.grouped_lane import GroupedLane
from softprompt.serving.registry import Entry, Registry
from softprompt.serving.requests import Answer, TextRequest, end_tokens, with_limits
from softprompt.serving.score_lane import ScoreLane
from softprompt.serving.settings import Sampling, Settings
from softprompt.tasks.inputs import as_row
from softprompt.tuned import TunedPrompt

log = logging.getLogger(__name__)

T = TypeVar("T")


class Engine:
    """Serves saved prompts on one backbone. Rows of any prompts share a pass, and no answer depends on its neighbours.

        async with Engine(backbone, folder="prompts") as engine:
            answers = await engine.answer("mood", ["I missed the bus today."])
            async for text in engine.write("summary", article): ...

    backbone  the frozen model; it stays as it is
    folder    of saved prompts, one folder each, which is followed: prompts that are written, changed or deleted there are
              loaded, replaced and removed; None: prompts come by `add`
    settings  limits and times
    """

    def __init__(
        self, backbone: Backbone, folder: str | Path | None = None, settings: Settings | None = None
    ) -> None:
        self.backbone = backbone
        self.folder = None if folder is None else Path(folder).resolve()
        self.settings = settings or Settings()
        self.cache = CompiledCache(self.settings.compiled_bytes)
        self.registry = Registry(backbone, self._drop)
        self.batches: list[Callable[[int, int, float], None]] = []
        self.under_way = 0
        self.ready = False
        self._lanes: tuple[ScoreLane, GroupedLane, GenerateLane | None] | None = None
        self._reader = ThreadPoolExecutor(1, "softprompt-read")
        self._follower: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Engine:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Load the folder's prompts and answer a trial row; the engine is ready then.

        Prompts that cannot be served are logged, and left out.
        """
        score = ScoreLane(
            self.cache,
            max_rows=self.settings.max_rows,
            max_wait=self.settings.max_wait_ms / 1000,
            on_batch=self._ran,
        )
        grouped = GroupedLane(max_rows=self.settings.max_rows)
        score.start()
        grouped.start()
        self._lanes = (score, grouped, None)
        base = self.registry.base
        if base is not None:
            lane = GenerateLane(
                self.backbone, tokens=self.settings.cache_tokens, requests=self.settings.max_rows
            )
            if await lane.check(base):
                self._lanes = (score, grouped, lane)
            else:
                await asyncio.to_thread(lane.close)
        await self.look_again()
        if self.folder is not None and self.settings.reload_seconds > 0:
            self._follower = asyncio.create_task(self._follow(), name="softprompt-reload")
        self.ready = True

    async def close(self) -> None:
        """Refuse what waits, end the threads. The prompts stay, and the engine may be started again."""
        self.ready = False
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
            self._follower = None
        if self._lanes is not None:
            (score, grouped, generate), self._lanes = self._lanes, None
            await score.close()
            await grouped.close()
            if generate is not None:
                await asyncio.to_thread(generate.close)

    # Prompts

    async def add(
        self, name: str, prompt: TunedPrompt | str | Path, *, overwrite: bool = False
    ) -> dict[str, Any]:
        """Serve a prompt, given as an object on this backbone or as its folder, and describe it.

        Raises BadRequestError for a name that is taken or not allowed, and what `softprompt.load` raises.
        """
        if isinstance(prompt, TunedPrompt):
            entry = self.registry.add(name, prompt, overwrite=overwrite)
        else:
            folder = Path(prompt).resolve()
            entry = await self._read(lambda: self.registry.load(name, folder, overwrite=overwrite))
        return self.describe(entry)

    async def remove(self, name: str) -> None:
        """Serve a prompt no longer; requests that have it are answered. Raises PromptNotFoundError."""
        self.registry.remove(name)

    async def look_again(self) -> list[str]:
        """Look at the folder now. Returns a sentence for each prompt that cannot be served."""
        if self.folder is None:
            return []
        folder = self.folder
        problems = await self._read(lambda: self.registry.follow(folder))
        for problem in problems:
            log.warning("%s", problem)
        return problems

    def models(self) -> list[dict[str, Any]]:
        """A description of each prompt, and of the backbone alone."""
        entries = list(self.registry)
        if self.registry.base is not None:
            entries.append(self.registry.base)
        return [self.describe(entry) for entry in entries]

    def describe(self, entry: Entry) -> dict[str, Any]:
        """What a client must know of a prompt."""
        return described(entry, self._lane_name(entry), is_backbone=entry is self.registry.base)

    # Answers

    async def answer(self, name: str, inputs: Sequence[Any], *, without_prompt: bool = False) -> Answer:
        """A prediction for each input, as `TunedPrompt.predict` gives it.

        inputs          texts, or rows with the template's columns
        without_prompt  ask the backbone alone; only where words answer

        Raises PromptNotFoundError, QueueFullError, TimedOutError, and BadRequestError for a prompt that writes text and for
        rows that cannot be read.
        """
        entry = self._entry(name, without_prompt)
        if entry.writes_text:
            raise BadRequestError(
                f"{name} writes text: use write(), /v1/completions or /v1/chat/completions", param="model"
            )
        score = self._started()[0]
        with self._room(len(inputs)):
            rows = await self._encode(entry, inputs)
            async with self._in_time():
                predictions = await score.answer(entry, rows)
        return Answer(predictions, sum(len(row.context) for row in rows), entry)

    async def open(
        self, name: str, value: Any, sampling: Sampling | None = None, *, without_prompt: bool = False
    ) -> TextRequest:
        """A request for a text, which begins when it is iterated. Raises as `answer` does.

        value: the text or row of a prompt; for the backbone alone the text that is continued
        """
        entry = self._entry(name, without_prompt)
        if not entry.writes_text:
            raise BadRequestError(
                f"{name} answers with labels or numbers: use answer() or /v1/classify", param="model"
            )
        self._started()
        (row,) = await self._encode(entry, [value])
        return self._text_request(entry, row, sampling or Sampling())

    async def open_chat(
        self, name: str, messages: Sequence[Mapping[str, str]], sampling: Sampling | None = None
    ) -> TextRequest:
        """A request that continues a chat, by the chat template of the backbone's tokenizer. For the backbone alone.

        Raises BadRequestError where there is no chat template, and for messages that it does not take.
        """
        entry = self._entry(name)
        if entry is not self.registry.base:
            raise BadRequestError(
                f"{name} has a template of its own: give the text of one message", param="messages"
            )
        tokenizer = self.backbone.tokenizer
        if not tokenizer.chat_template:
            raise BadRequestError(
                f"{name} has no chat template: it was not trained to chat. Use /v1/completions, or a tuned prompt",
                param="messages",
            )

        def encode() -> tuple[int, ...]:
            try:
                ids: Any = tokenizer.apply_chat_template(
                    [dict(one) for one in messages], add_generation_prompt=True, return_dict=False
                )
            except Exception as error:  # templates raise what they like
                raise BadRequestError(f"the chat template does not take these messages: {error}") from error
            return tuple(ids)

        row = EncodedRow(await self._read(encode))
        return self._text_request(entry, row, sampling or Sampling())

    async def write(self, name: str, value: Any, sampling: Sampling | None = None) -> AsyncIterator[str]:
        """The text that a prompt writes, piece by piece. Raises as `open` does."""
        request = await self.open(name, value, sampling)
        async for piece in request:
            yield piece

    def _text_request(self, entry: Entry, row: EncodedRow, sampling: Sampling) -> TextRequest:
        score, grouped, generate = self._started()
        room = self.settings.cache_tokens if self._lane_name(entry) == "continuous" else None
        sampling = with_limits(
            entry, row, sampling, self.settings, is_base=entry is self.registry.base, room=room
        )
        ends = end_tokens(entry)
        seeded = sampling.seed is not None and sampling.temperature > 0
        lane = generate if generate is not None and generate.takes(entry) and not seeded else grouped
        return TextRequest(
            entry=entry,
            row=row,
            sampling=sampling,
            ends=ends,
            lane=lane,
            score=score,
            is_base=entry is self.registry.base,
            room=lambda: self._room(1),
            seconds=self.settings.request_seconds,
        )

    # What they share

    def _entry(self, name: str, without_prompt: bool = False) -> Entry:
        entry = self.registry[name]
        return entry.without_prompt if without_prompt else entry

    async def _encode(self, entry: Entry, inputs: Sequence[Any]) -> list[EncodedRow]:
        """Rows as tokens, on a thread. Raises BadRequestError for what the task cannot read."""

        def encode() -> list[EncodedRow]:
            tuned = entry.tuned
            rows = []
            for number, value in enumerate(inputs):
                if entry is self.registry.base and isinstance(
                    value, str
                ):  # a task would cut a text that is too long
                    ids: Any = self.backbone.tokenizer(value, verbose=False)["input_ids"]
                    rows.append(EncodedRow(tuple(ids)))
                    continue
                try:
                    rows.append(tuned.encoder.encode(as_row(tuned.task, value), answer=False))
                except (ValueError, TypeError, OSError) as error:
                    where = f"input {number}: " if len(inputs) > 1 else ""
                    raise BadRequestError(f"{where}{error}", param="input") from error
            return rows

        return await self._read(encode)

    async def _read(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, function)

    @contextmanager
    def _room(self, count: int) -> Iterator[None]:
        """Within the block `count` more rows are under way. Raises QueueFullError where there are too many."""
        if self.under_way + count > self.settings.max_queue:
            raise QueueFullError(
                f"{self.under_way} rows are under way, and the server takes {self.settings.max_queue}: try again later",
                retry_after=1,
            )
        self.under_way += count
        try:
            yield
        finally:
            self.under_way -= count

    def _in_time(self) -> _InTime:
        return _InTime(self.settings.request_seconds)

    def _started(self) -> tuple[ScoreLane, GroupedLane, GenerateLane | None]:
        if self._lanes is None:
            raise StoppedError("the engine is not running: use `async with engine`")
        return self._lanes

    def _lane_name(self, entry: Entry) -> str:
        if not entry.writes_text:
            return "score"
        generate = self._lanes[2] if self._lanes is not None else None
        return "continuous" if generate is not None and generate.takes(entry) else "grouped"

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self.settings.reload_seconds)
            try:
                await self.look_again()
            except Exception:
                log.exception("the folder of prompts could not be read")

    def _drop(self, entry: Entry) -> None:
        self.cache.drop(entry)
        if self._lanes is not None and self._lanes[2] is not None:
            self._lanes[2].drop(entry)

    def _ran(self, rows: int, prompts: int, seconds: float) -> None:
        for told in self.batches:
            told(rows, prompts, seconds)


class _InTime:
    """Within the block TimedOutError is raised after some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timeout = asyncio.timeout(seconds)

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        try:
            await self._timeout.__aexit__(*error)
        except TimeoutError as late:
            raise TimedOutError(f"there was no answer within {self._seconds:g} seconds") from late
