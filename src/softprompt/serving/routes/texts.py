"""What POST /v1/completions and /v1/chat/completions share: n texts for each input, at once or as events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.serving.errors import BadRequestError
from softprompt.serving.event_streams import EventResponse, Item, events, merged
from softprompt.serving.request_bodies import SamplingBody
from softprompt.serving.requests import TextRequest
from softprompt.serving.service import Service, record_of, together, while_connected


@dataclass(frozen=True)
class Form:
    """How a route writes its answers.

    object  of a whole answer
    chunk   of a piece
    prefix  of ids
    choice  a choice of a whole answer, given its number, text and request
    piece   a choice of a chunk, given its number, the piece (None: the text has ended) and the request
    begin   a choice of a chunk before any piece; None: there is none
    """

    object: str
    chunk: str
    prefix: str
    choice: Callable[[int, str, TextRequest], dict[str, Any]]
    piece: Callable[[int, str | None, TextRequest], dict[str, Any]]
    begin: Callable[[int], dict[str, Any]] | None = None


def number_of_texts(body: SamplingBody, inputs: int, service: Service) -> int:
    """How many texts each input gets. Raises BadRequestError for too many."""
    n = body.n or 1
    if n > service.settings.max_texts:
        raise BadRequestError(f"n is {n}, and this server writes {service.settings.max_texts}", param="n")
    if n * inputs > service.settings.max_request_rows:
        raise BadRequestError(
            f"{inputs} inputs with n = {n} are more than {service.settings.max_request_rows} texts", param="n"
        )
    return n


async def answer(
    request: Request, service: Service, body: SamplingBody, texts: Sequence[TextRequest], form: Form
) -> Response:
    """Write the texts. `texts` has n for each input, one after another."""
    record = record_of(request)
    record.rows = len(texts)
    answering = Answering(body, texts, form)
    if not body.stream:
        with record.caller.rows(len(texts)):
            whole = await while_connected(request, together([text.text() for text in texts]))
        usage = answering.usage()
        record.read_tokens, record.written_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        choices = [form.choice(n, *one) for n, one in enumerate(zip(whole, texts, strict=True))]
        return JSONResponse({**answering.head(form.object), "choices": choices, "usage": usage})

    with ExitStack() as held:
        held.enter_context(record.caller.rows(len(texts)))
        pieces = merged(texts)
        record.error = "client_gone"  # until all is said

        async def close() -> None:
            await pieces.aclose()
            room.close()
            usage = answering.usage()
            record.read_tokens, record.written_tokens = usage["prompt_tokens"], usage["completion_tokens"]

        first = await while_connected(request, anext(pieces))
        room = held.pop_all()

    def end(wrong: str) -> None:
        record.error = wrong

    return EventResponse(events(pieces, first, answering.chunks, answering.last, end), close)


@dataclass
class Answering:
    """An answer on its way."""

    body: SamplingBody
    texts: Sequence[TextRequest]
    form: Form
    created: int = field(default_factory=lambda: int(time.time()))
    number: str = field(default_factory=lambda: uuid.uuid4().hex)
    _begun: set[int] = field(default_factory=set)

    def head(self, kind: str) -> dict[str, Any]:
        """What an answer and each of its chunks begin with."""
        return {
            "id": f"{self.form.prefix}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.body.model,
        }

    def usage(self) -> dict[str, int]:
        """Tokens that were read, once for the n texts of an input, and written."""
        read = sum(text.prompt_tokens for text in self.texts[:: self.body.n or 1])
        written = sum(text.new_tokens for text in self.texts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def chunks(self, item: Item) -> list[dict[str, Any]]:
        """The chunks of a piece."""
        number, piece = item
        choices = [self.form.piece(number, piece, self.texts[number])]
        if number not in self._begun:
            self._begun.add(number)
            if self.form.begin is not None:
                choices.insert(0, self.form.begin(number))
        return [{**self.head(self.form.chunk), "choices": [choice]} for choice in choices]

    def last(self) -> list[dict[str, Any]]:
        """The chunk with the usage, if it was asked for."""
        options = self.body.stream_options
        if options is None or not options.include_usage:
            return []
        return [{**self.head(self.form.chunk), "choices": [], "usage": self.usage()}]
