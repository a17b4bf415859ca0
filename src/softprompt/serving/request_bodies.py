"""Bodies of requests: read up to a limit and within a time, then checked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request

from softprompt.errors import explain
from softprompt.serving.errors import (
    BadRequestError,
    BodyTimedOutError,
    BodyTooLargeError,
    ClientGoneError,
    WrongContentTypeError,
)
from softprompt.serving.settings import Sampling, Settings

_SWALLOWED = 8  # so many times the limit are read and dropped, for a client that reads no answer before it has sent all


class Body(BaseModel):
    """What all bodies share: an unknown setting is an error, and 1 is not "1"."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ClassifyBody(Body):
    """POST /v1/classify."""

    model: str
    input: Any
    """A text, a row as an object with the template's columns, or a list of these."""
    without_prompt: bool = False
    """Ask the backbone alone."""
    user: str | None = None


class PromptBody(Body):
    """POST /v1/prompts."""

    name: str
    folder: str | None = None
    """Inside the served folder; the name, unless it is given."""
    overwrite: bool = False


class _StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingBody(Body):
    """What completions and chats share. Settings that would be ignored are refused."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    without_prompt: bool = False

    @model_validator(mode="after")
    def _nothing_ignored(self) -> Self:
        for name in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if getattr(self, name):
                raise ValueError(f"{name} is not built: leave it out")
        if isinstance(self.stop, list) and not all(self.stop):
            raise ValueError("stop holds an empty text")
        return self

    def sampling(self, logprobs: int | None, number: int, max_tokens: int | None) -> Sampling:
        """How answer `number` of a request is sampled."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            max_new_tokens=max_tokens,
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=self.top_k,
            seed=None if self.seed is None else self.seed + number,
            stop=tuple(filter(None, stop)),
            logprobs=logprobs,
        )


class CompletionsBody(SamplingBody):
    """POST /v1/completions."""

    prompt: Any
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None


class _Url(Body):
    url: str
    detail: str | None = None


class _Part(Body):
    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: _Url | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    @property
    def text(self) -> str:
        """The texts of all parts. Raises BadRequestError for an image."""
        if isinstance(self.content, str):
            return self.content
        if any(part.type != "text" or part.text is None for part in self.content):
            raise BadRequestError(
                "a message holds text only: images go to /v1/classify, as data URLs", param="messages"
            )
        return "".join(part.text or "" for part in self.content)


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


B = TypeVar("B", bound=Body)


async def read_body(request: Request, kind: type[B], settings: Settings) -> B:
    """The body of a request.

    Raises WrongContentTypeError, BodyTooLargeError, BodyTimedOutError, and BadRequestError for what is no JSON or does not
    fit the kind.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media != "application/json":
        raise WrongContentTypeError(
            f"the content type is {media[:64]!r}, expected application/json: send the header Content-Type"
        )
    try:
        async with asyncio.timeout(settings.body_seconds):
            content = await _bytes(request, settings.max_body_bytes)
    except TimeoutError as late:
        raise BodyTimedOutError(f"the body did not arrive within {settings.body_seconds:g} seconds") from late
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "json_invalid":
            raise BadRequestError(f"the body is no JSON that is read here: {first['msg']}") from error
        raise BadRequestError(explain(error), param=where) from error


async def _bytes(request: Request, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    more = True
    while more and size <= _SWALLOWED * limit:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client has gone")
        part = message.get("body", b"")
        size += len(part)
        more = message.get("more_body", False)
        if size > limit:
            parts.clear()
        else:
            parts.append(part)
    if size > limit:
        raise BodyTooLargeError(f"the body has more than {limit:,} bytes: send fewer rows, or smaller images")
    return b"".join(parts)


def as_inputs(value: Any, settings: Settings, param: str) -> tuple[list[Any], bool]:
    """The inputs of a request, and whether they came as a list.

    Raises BadRequestError for what is no text, no row and no list of them, for too many, and for rows that are too long.
    """
    inputs = value if isinstance(value, list) else [value]
    if not inputs:
        raise BadRequestError("there is no input", param=param)
    if len(inputs) > settings.max_request_rows:
        raise BadRequestError(
            f"there are {len(inputs)} inputs, and a request may have {settings.max_request_rows}: send several",
            param=param,
        )
    for number, one in enumerate(inputs):
        if not isinstance(one, str | dict):
            raise BadRequestError(
                f"input {number} is {type(one).__name__}: expected a text, or an object with the template's columns"
                + ("; token ids are not taken" if isinstance(one, int | list) else ""),
                param=param,
            )
    return inputs, isinstance(value, list)


def check_length(inputs: Sequence[Any], settings: Settings, param: str) -> None:
    """Raise BadRequestError for an input with more characters than are allowed."""
    for number, one in enumerate(inputs):
        if (found := _characters(one)) > settings.max_characters:
            raise BadRequestError(
                f"input {number} has {found:,} characters, and a row may have {settings.max_characters:,}: shorten it",
                param=param,
            )


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(_characters(one) for one in value.values())
    return sum(_characters(one) for one in value) if isinstance(value, list) else 0
