"""POST /v1/classify: labels with probabilities, numbers, tags and spans."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.files import finite
from softprompt.serving.data_urls import with_images
from softprompt.serving.request_bodies import ClassifyBody, as_inputs, check_length, read_body
from softprompt.serving.service import Service, record_of, while_connected
from softprompt.tasks import ClassPrediction, LabelsPrediction, SpanPrediction


def routes(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/classify")
    async def classify(request: Request) -> Response:
        settings, record = service.settings, record_of(request)
        body = await read_body(request, ClassifyBody, settings)
        entry = service.entry(request, body.model)
        given, _ = as_inputs(body.input, settings, "input")
        inputs = await asyncio.to_thread(with_images, entry, given, settings)
        check_length(inputs, settings, "input")
        with record.caller.rows(len(inputs)):
            answer = await while_connected(
                request, service.engine.answer(body.model, inputs, without_prompt=body.without_prompt)
            )
        record.rows, record.read_tokens = len(inputs), answer.tokens
        data = [{"index": n, **described(one)} for n, one in enumerate(answer.predictions)]
        return JSONResponse(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "classification",
                "created": int(time.time()),
                "model": body.model,
                "data": finite(data),
                "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
            }
        )

    return router


def described(prediction: Any) -> Mapping[str, Any]:
    """A prediction as JSON."""
    match prediction:
        case ClassPrediction():
            return {"label": prediction.label, "probabilities": prediction.probabilities}
        case LabelsPrediction():
            return {"labels": list(prediction.labels), "probabilities": prediction.probabilities}
        case SpanPrediction():
            return {
                "span": prediction.text,
                "characters": list(prediction.characters),
                "probability": prediction.probability,
            }
        case str():  # one of the task's choices
            return {"text": prediction}
        case list():
            return {"tags": prediction}
        case _:
            return {"value": prediction}
