"""POST /v1/completions: a prompt's input, or a text that the backbone itself continues."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from softprompt.serving.data_urls import with_images
from softprompt.serving.request_bodies import CompletionsBody, as_inputs, check_length, read_body
from softprompt.serving.requests import TextRequest
from softprompt.serving.routes.texts import Form, answer, number_of_texts
from softprompt.serving.service import Service


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        settings = service.settings
        body = await read_body(request, CompletionsBody, settings)
        entry = service.entry(request, body.model)
        inputs = with_images(entry, as_inputs(body.prompt, settings, "prompt")[0], settings)
        check_length(inputs, settings, "prompt")
        n = number_of_texts(body, len(inputs), service)
        texts = [
            await service.engine.open(
                body.model,
                value,
                body.sampling(body.logprobs, number, body.max_tokens),
                without_prompt=body.without_prompt,
            )
            for value in inputs
            for number in range(n)
        ]
        return await answer(request, service, body, texts, FORM)

    return router


def _choice(number: int, text: str, written: TextRequest) -> dict[str, Any]:
    return {
        "index": number,
        "text": text,
        "finish_reason": written.finish,
        "logprobs": _logprobs(written),
    }


def _piece(number: int, piece: str | None, written: TextRequest) -> dict[str, Any]:
    if piece is None:
        return _choice(number, "", written)
    return {"index": number, "text": piece, "finish_reason": None, "logprobs": None}


def _logprobs(written: TextRequest) -> dict[str, Any] | None:
    if written.sampling.logprobs is None:
        return None
    decode = written.entry.tuned.backbone.tokenizer.decode
    tokens: list[str] = [str(decode([one.token])) for one in written.choices]
    offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    return {
        "tokens": tokens,
        "token_logprobs": [one.logprob for one in written.choices],
        "top_logprobs": [{str(decode([i])): log for i, log in one.top} for one in written.choices],
        "text_offset": offsets,
    }


FORM = Form("text_completion", "text_completion", "cmpl", _choice, _piece)
