"""POST /v1/chat/completions: a conversation for prompts of chats and for the backbone, one message for other prompts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from softprompt.serving.data_urls import with_images
from softprompt.serving.errors import BadRequestError
from softprompt.serving.registry import Entry
from softprompt.serving.request_bodies import ChatBody, check_length, read_body
from softprompt.serving.requests import TextRequest
from softprompt.serving.routes.texts import Form, answer, number_of_texts
from softprompt.serving.service import Service
from softprompt.serving.settings import Sampling
from softprompt.tasks import Chat


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await read_body(request, ChatBody, service.settings)
        entry = service.entry(request, body.model)
        check_length([[message.text for message in body.messages]], service.settings, "messages")
        n = number_of_texts(body, 1, service)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        texts = [
            await _open(service, entry, body, body.sampling(logprobs, number, limit)) for number in range(n)
        ]
        return await answer(request, service, body, texts, FORM)

    return router


async def _open(service: Service, entry: Entry, body: ChatBody, sampling: Sampling) -> TextRequest:
    # "developer" is OpenAI's later name of the role that chat templates call "system".
    turns = [
        {"role": "system" if one.role == "developer" else one.role, "content": one.text}
        for one in body.messages
    ]
    if entry is service.engine.registry.base:
        return await service.engine.open_chat(body.model, turns, sampling)
    task = entry.tuned.task
    if isinstance(task, Chat) and task.format != "alpaca":
        row = {task.columns.get(task.format, task.format): turns}
        return await service.engine.open(body.model, row, sampling, without_prompt=body.without_prompt)
    if len(body.messages) != 1 or body.messages[0].role != "user":
        raise BadRequestError(
            f"{body.model} has a template of its own, which is filled with one text: send one message of the user"
            f" (found {len(body.messages)}: {', '.join(one.role for one in body.messages[:8])})",
            param="messages",
        )
    (value,) = with_images(entry, [turns[0]["content"]], service.settings)
    return await service.engine.open(body.model, value, sampling, without_prompt=body.without_prompt)


def _choice(number: int, text: str, written: TextRequest) -> dict[str, Any]:
    return {
        "index": number,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "finish_reason": written.finish,
        "logprobs": _logprobs(written),
    }


def _begin(number: int) -> dict[str, Any]:
    return _delta(number, {"role": "assistant", "content": ""})


def _piece(number: int, piece: str | None, written: TextRequest) -> dict[str, Any]:
    if piece is not None:
        return _delta(number, {"content": piece})
    return {**_delta(number, {}), "finish_reason": written.finish, "logprobs": _logprobs(written)}


def _delta(number: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": number, "delta": delta, "finish_reason": None, "logprobs": None}


def _logprobs(written: TextRequest) -> dict[str, Any] | None:
    if written.sampling.logprobs is None:
        return None

    def token(number: int, log: float) -> dict[str, Any]:
        text = str(written.entry.tuned.backbone.tokenizer.decode([number]))
        return {"token": text, "logprob": log, "bytes": list(text.encode())}

    return {
        "content": [
            {**token(one.token, one.logprob), "top_logprobs": [token(*other) for other in one.top]}
            for one in written.choices
        ],
        "refusal": None,
    }


FORM = Form("chat.completion", "chat.completion.chunk", "chatcmpl", _choice, _piece, _begin)
