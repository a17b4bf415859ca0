"""Text by our own `generate`: for key-value prefixes, offsets, encoder-decoders, seeds, and whatever continuous batching does
not take. Texts of one prompt and one way of sampling that wait together are generated together."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from softprompt.outputs import EncodedRow
from softprompt.serving.errors import ServingError, StoppedError
from softprompt.serving.registry import Entry
from softprompt.serving.settings import Sampling
from softprompt.serving.token_stream import TokenStream
from softprompt.surroundings import own_generators, own_settings


@dataclass(eq=False)
class _Text:
    entry: Entry
    row: EncodedRow
    sampling: Sampling
    ends: tuple[int, ...]
    stream: TokenStream

    @property
    def group(self) -> Hashable:
        """Texts of equal groups may be generated together; a seeded one never is."""
        one = self.sampling
        drawn = (one.temperature, one.top_p, one.top_k) if one.temperature > 0 else None
        return self.entry, self.ends, drawn, None if one.seed is None or drawn is None else id(self)


class GroupedLane:
    """Collects texts by prompt and generates them.

    max_rows  texts that are generated together
    """

    def __init__(self, *, max_rows: int) -> None:
        self.max_rows = max_rows
        self._waiting: list[_Text] = []
        self._arrived = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "softprompt-generate")
        self._running: list[_Text] = []
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to write; called in the event loop."""
        self._task = asyncio.create_task(self._run(), name="softprompt-generate")

    async def close(self) -> None:
        """End all texts, and the thread."""
        for text in [*self._waiting, *self._running]:
            text.stream.fail(StoppedError("the server is stopping"))
            text.stream.cancelled = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._worker.shutdown(wait=True, cancel_futures=True)

    def open(self, entry: Entry, row: EncodedRow, sampling: Sampling, ends: tuple[int, ...]) -> TokenStream:
        """Begin to write. Called in the event loop."""
        text = _Text(entry, row, sampling, ends, TokenStream())
        self._waiting.append(text)
        self._arrived.set()
        return text.stream

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._waiting = [text for text in self._waiting if not text.stream.cancelled]
            if not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            group = self._waiting[0].group
            self._running = [text for text in self._waiting if text.group == group][: self.max_rows]
            self._waiting = [text for text in self._waiting if text not in self._running]
            await loop.run_in_executor(self._worker, _write, self._running)
            self._running = []


def _write(texts: Sequence[_Text]) -> None:
    """Generate texts of one group. Their tokens are delivered one by one."""
    first = texts[0]
    options: dict[str, Any] = {"do_sample": False}
    if first.sampling.temperature > 0:
        options = {"do_sample": True, "temperature": first.sampling.temperature}
        options |= {"top_p": first.sampling.top_p, "top_k": first.sampling.top_k}
    options["max_new_tokens"] = max(text.sampling.max_new_tokens or 1 for text in texts)
    options["eos_token_id"] = list(first.ends) or None
    options["stopping_criteria"] = StoppingCriteriaList([_Deliver(texts, first.ends)])
    device = first.entry.tuned.backbone.device
    try:
        with own_settings(), own_generators([device] if device.type == "cuda" else []):
            if first.sampling.seed is not None:
                torch.manual_seed(first.sampling.seed)
            first.entry.tuned.model.generate([text.row for text in texts], **options)
    except Exception as error:
        for text in texts:
            text.stream.fail(ServingError(f"the text could not be generated: {error}"))
        return
    for text in texts:
        text.stream.end()


class _Deliver(StoppingCriteria):
    """Delivers each row's new token, and ends rows that have what they asked for or that nobody wants any longer."""

    def __init__(self, texts: Sequence[_Text], ends: Collection[int]) -> None:
        self.texts = texts
        self.ends = frozenset(ends)
        self.left = [text.sampling.max_new_tokens or 1 for text in texts]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for place, (text, token) in enumerate(zip(self.texts, input_ids[:, -1].tolist(), strict=True)):
            if self.left[place] == 0:
                continue
            if text.stream.cancelled:
                self.left[place] = 0
                continue
            text.stream.push(token)
            self.left[place] = 0 if token in self.ends else self.left[place] - 1
        return torch.tensor([left == 0 for left in self.left], device=input_ids.device)
