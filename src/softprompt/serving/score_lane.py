"""Answers with labels, numbers, tags and spans: rows of any prompts are collected and run in one packed pass.

The pass runs on a thread of its own, so that the event loop stays free. While it runs, further rows collect. A row's answer
does not depend on the rows beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from softprompt.backbones.engine import CompiledPrompt
from softprompt.mixed import ScoredBatch
from softprompt.model import PromptedModel, stack_prompts
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.serving.compiled_cache import CompiledCache, begins, plain
from softprompt.serving.errors import StoppedError
from softprompt.serving.registry import Entry
from softprompt.surroundings import own_settings

T = TypeVar("T")

_MOMENTS = 0.05  # as a share of the pass


@dataclass(eq=False)
class Job:
    """A row that waits for its answer."""

    entry: Entry
    row: EncodedRow
    done: asyncio.Future[Any]
    since: float = field(default_factory=time.perf_counter)


class ScoreLane:
    """Collects rows and answers them.

    cache        of keys and values
    max_rows     rows of one pass
    max_wait     seconds that a row waits for others
    on_batch     is told the rows, the prompts and the seconds of each pass
    """

    def __init__(
        self,
        cache: CompiledCache,
        *,
        max_rows: int,
        max_wait: float,
        on_batch: Callable[[int, int, float], None] = lambda rows, prompts, seconds: None,
    ) -> None:
        self.cache = cache
        self.max_rows, self.max_wait = max_rows, max_wait
        self._on_batch = on_batch
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "softprompt-score")
        self._task: asyncio.Task[None] | None = None
        self._not_before = 0.0  # clients that were just answered ask again within moments: their rows join the next pass

    def start(self) -> None:
        """Begin to answer; called in the event loop."""
        self._task = asyncio.create_task(self._run(), name="softprompt-score")

    async def close(self) -> None:
        """Refuse what still waits, and end the thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        for job in self._waiting:
            if not job.done.done():
                job.done.set_exception(StoppedError("the server is stopping"))
        self._waiting.clear()
        self._worker.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """Rows that no pass has taken yet."""
        return len(self._waiting)

    async def answer(self, entry: Entry, rows: Sequence[EncodedRow]) -> list[Any]:
        """A prediction for each row, in order. Raises what the task's `predict` raises."""
        if self._task is None:
            raise StoppedError("the engine is not started: use `async with engine`")
        loop = asyncio.get_running_loop()
        jobs = [Job(entry, row, loop.create_future()) for row in rows]
        self._waiting.extend(jobs)
        self._arrived.set()
        try:
            return list(await asyncio.gather(*(job.done for job in jobs)))
        finally:
            for job in jobs:
                job.done.cancel()  # those that still wait are then left out

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function on the thread that runs the passes, between two of them."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, _quietly, function)

    async def _run(self) -> None:
        while True:
            batch = await self._collect()
            if not batch:
                continue
            begun = time.perf_counter()
            answers = await self.run(lambda batch=batch: answer_batch(batch, self.cache))  # type: ignore[misc]
            prompts = len({job.entry for job in batch})
            ended = time.perf_counter()
            self._not_before = ended + _MOMENTS * (ended - begun)
            self._on_batch(len(batch), prompts, ended - begun)
            for job, answer in zip(batch, answers, strict=True):
                if job.done.done():
                    continue
                if isinstance(answer, Exception):
                    job.done.set_exception(answer)
                else:
                    job.done.set_result(answer)

    async def _collect(self) -> list[Job]:
        """The next rows to run: as many as fit, or as have come in time."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        until = max(self._waiting[0].since + self.max_wait, self._not_before)
        while len(self._waiting) < self.max_rows and (left := until - time.perf_counter()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        batch: list[Job] = []
        while self._waiting and len(batch) < self.max_rows:
            job = self._waiting.popleft()
            if not job.done.done():  # cancelled
                batch.append(job)
        return batch


def _quietly(function: Callable[[], T]) -> T:
    with own_settings(), torch.no_grad():
        return function()


def answer_batch(jobs: Sequence[Job], cache: CompiledCache) -> list[Any]:
    """The answer of each job, or the exception that it is refused with. An error of one prompt does not reach the others."""
    answers: dict[Job, Any] = {}
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_group(job), []).append(job)
    for group in groups.values():
        try:
            answers |= _answer_group(group, cache)
        except Exception:
            for entry in {job.entry for job in group}:
                for job in (job for job in group if job.entry is entry):
                    try:
                        answers |= _answer_group([job], cache)
                    except Exception as error:
                        answers[job] = error
    return [answers[job] for job in jobs]


def _group(job: Job) -> Hashable:
    """Jobs of equal groups may share a pass: those that words answer, and those whose states are read."""
    tuned = job.entry.tuned
    if tuned.module.reads is not None or tuned.backbone.spec.reads != "text":
        return job.entry
    output = tuned.module()
    if output.layers is not None or _lengths(output) > 1:
        return job.entry
    return bool(job.row.targets), bool(job.row.read)


def _lengths(output: PromptOutput) -> int:
    return len({key.shape[2] for key, _ in output.prefix or ()})


def _answer_group(jobs: Sequence[Job], cache: CompiledCache) -> dict[Job, Any]:
    """The answers of jobs that share a pass."""
    entries = list(dict.fromkeys(job.entry for job in jobs))
    number = {entry: n for n, entry in enumerate(entries)}
    rows = [replace(job.row, prompt=number[job.entry]) for job in jobs]
    scored = ScoredBatch(model_of(entries, rows, cache), rows)
    answers: dict[Job, Any] = {}
    for entry in entries:
        mine = [(job, row) for job, row in zip(jobs, rows, strict=True) if job.entry is entry]
        found = entry.tuned.encoder.predict(scored, [row for _, row in mine], batch_size=len(mine))
        answers |= zip((job for job, _ in mine), found, strict=True)
    return answers


def model_of(entries: Sequence[Entry], rows: Sequence[EncodedRow], cache: CompiledCache) -> PromptedModel:
    """A model with the prompts of these entries, in this order, with what is known of them computed."""
    tuned = [entry.tuned for entry in entries]
    if len(tuned) == 1 and (tuned[0].module.reads is not None or tuned[0].backbone.spec.reads != "text"):
        return tuned[0].model
    model = PromptedModel(tuned[0].backbone, [one.module for one in tuned], [one.head for one in tuned])
    compiled = []
    for n, entry in enumerate(entries):
        mine = [row for row in rows if row.prompt == n]
        first = cache.get(entry, mine[0])
        others = all(begins(first, row) for row in mine)
        compiled.append(first if others else plain(entry))
    if any(any(one.heads) for one in compiled):
        dtype = tuned[0].backbone.dtype
        stacked = stack_prompts([_cast(one.prompt, dtype) for one in compiled])
        model.keep(CompiledPrompt(tuple(head for one in compiled for head in one.heads), stacked))
    return model


def _cast(output: PromptOutput, dtype: torch.dtype) -> PromptOutput:
    """The same prompt with keys and values in the backbone's precision, in which they are used."""
    if output.prefix is None:
        return replace(output, lengths=None)
    return replace(output, prefix=tuple((key.to(dtype), value.to(dtype)) for key, value in output.prefix))
