"""One request for a text: what may be asked, and the text as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from softprompt.outputs import EncodedRow
from softprompt.serving.errors import BadRequestError, TimedOutError
from softprompt.serving.registry import Entry
from softprompt.serving.score_lane import ScoreLane, model_of
from softprompt.serving.settings import Sampling, Settings
from softprompt.serving.texts import FinishReason, TextWriter
from softprompt.serving.token_stream import TokenStream


@dataclass(frozen=True)
class Answer:
    """Predictions in order, the tokens that were read for them, and the entry that gave them."""

    predictions: list[Any]
    tokens: int
    entry: Entry


@dataclass(frozen=True)
class TokenChoice:
    """A token of an answer, its log-probability, and the likeliest tokens in its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class TextLane(Protocol):
    """What writes tokens."""

    def open(
        self, entry: Entry, row: EncodedRow, sampling: Sampling, ends: tuple[int, ...]
    ) -> TokenStream: ...


@dataclass(eq=False)
class TextRequest:
    """A text that is written when it is iterated: `async for piece in request`. It is written once.

    entry, row  the prompt, and the input as tokens
    sampling    complete: `max_new_tokens` is a number
    finish      why the text ended, once it has
    choices     the tokens with their log-probabilities, if these were asked for, once the text has ended
    """

    entry: Entry
    row: EncodedRow
    sampling: Sampling
    ends: tuple[int, ...]
    lane: TextLane
    score: ScoreLane
    is_base: bool
    room: Callable[[], AbstractContextManager[None]]
    seconds: float
    finish: FinishReason | None = None
    choices: list[TokenChoice] = field(default_factory=list)
    writer: TextWriter = field(init=False)

    def __post_init__(self) -> None:
        task: Any = self.entry.tuned.task
        end = None if self.is_base else task.end_text
        self.writer = TextWriter(
            tokenizer=self.entry.tuned.backbone.tokenizer,
            limit=self.sampling.max_new_tokens or 1,
            ends=self.ends,
            stops=(*self.sampling.stop, *([] if end is None else [end])),
            strip=not self.is_base,
        )

    @property
    def prompt_tokens(self) -> int:
        """Tokens that were read, virtual ones included."""
        return len(self.row.context)

    @property
    def new_tokens(self) -> int:
        """Tokens that were written so far, the end mark included."""
        return len(self.writer.tokens)

    async def __aiter__(self) -> AsyncIterator[str]:
        deadline = asyncio.get_running_loop().time() + self.seconds
        with self.room():
            stream = self.lane.open(self.entry, self.row, self.sampling, self.ends)
            tokens = aiter(stream)
            try:
                while self.writer.finished is None:
                    try:
                        async with asyncio.timeout_at(deadline):
                            token = await anext(tokens)
                    except StopAsyncIteration:
                        break
                    except TimeoutError as late:
                        raise TimedOutError(
                            f"the text was not ready within {self.seconds:g} seconds"
                        ) from late
                    if piece := self.writer.push(token):
                        yield piece
                self.finish = self.writer.finished or "stop"
                if self.sampling.logprobs is not None:
                    self.choices = await self.score.run(self._read_choices)
            finally:
                stream.cancel()

    async def text(self) -> str:
        """The whole text."""
        return "".join([piece async for piece in self])

    def _read_choices(self) -> list[TokenChoice]:
        """Score the tokens that were written, in one pass: sampling changes nothing in these probabilities."""
        tokens = tuple(self.writer.tokens)
        row = replace(self.row, targets=(tokens,), prompt=0)
        scored = model_of([self.entry], [row], self.score.cache).score([row])
        logs = scored.logits.float().log_softmax(dim=-1)[scored.position]  # (M, V)
        values, ids = logs.topk(min(self.sampling.logprobs or 1, logs.shape[1]), dim=-1)
        own = logs.gather(1, scored.token[:, None])[:, 0].tolist()
        tops = [list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.tolist(), strict=True)]
        shown = self.sampling.logprobs or 0
        return [
            TokenChoice(token, log, tuple(top[:shown]))
            for token, log, top in zip(tokens, own, tops, strict=True)
        ]


def end_tokens(entry: Entry) -> tuple[int, ...]:
    """The tokens that end a text: the tokenizer's end, and those that the model's own settings and a chat's template name."""
    backbone = entry.tuned.backbone
    named: Any = getattr(backbone.model.generation_config, "eos_token_id", None)
    own = getattr(entry.tuned.encoder, "stops", ())  # a chat's template writes a token behind its answers
    ids = {backbone.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named]), *own}
    return tuple(sorted(i for i in ids if i is not None))


def with_limits(
    entry: Entry, row: EncodedRow, sampling: Sampling, settings: Settings, *, is_base: bool, room: int | None
) -> Sampling:
    """The sampling with the number of tokens that there is room for.

    room: tokens that the lane has room for in one text, what is read included; None: there is no limit

    Raises BadRequestError where the text to be read leaves no room, and for more tokens than are allowed.
    """
    task: Any = entry.tuned.task
    own = settings.default_new_tokens if is_base else task.max_new_tokens
    wanted = own if sampling.max_new_tokens is None else sampling.max_new_tokens
    if sampling.max_new_tokens is not None and not 1 <= wanted <= settings.max_new_tokens:
        raise BadRequestError(
            f"max_tokens is {wanted}: this server writes 1 to {settings.max_new_tokens} tokens",
            param="max_tokens",
        )
    spec = entry.tuned.backbone.spec
    limits = [room] if room is not None else []
    if spec.positions is not None and not spec.closed:
        limits.append(spec.positions - entry.tuned.module.prefix_length)
    left = min(limits, default=len(row.context) + wanted) - len(row.context)
    if left < 1:
        raise BadRequestError(
            f"the text has {len(row.context)} tokens, and there is room for {min(limits)} with the answer: shorten it",
            param="prompt",
        )
    return replace(sampling, max_new_tokens=min(wanted, left))
