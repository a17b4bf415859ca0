"""Errors in OpenAI's shape, which its clients turn into exceptions."""

from __future__ import annotations

import math
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from softprompt.serving.errors import (
    BodyTimedOutError,
    BodyTooLargeError,
    NotAuthorisedError,
    ServingError,
    UnknownRouteError,
)


def error_body(error: ServingError) -> dict[str, Any]:
    """The error as OpenAI's clients read it."""
    return {
        "error": {"message": str(error), "type": error.kind, "param": error.param, "code": error.code},
    }


def refusal(error: ServingError) -> Response:
    """The response that says it."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after))
    if isinstance(error, NotAuthorisedError):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, BodyTooLargeError | BodyTimedOutError):
        headers["connection"] = "close"  # the rest of the body is not waited for
    return JSONResponse(error_body(error), error.status, headers)


async def refuse(request: Request, error: Exception) -> Response:
    """Answer an error that a route raised."""
    if isinstance(error, HTTPException):
        other = UnknownRouteError(
            f"there is no {request.method} of this path; GET /v1/models lists what is served"
        )
        response = refusal(other)
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        request.state.record.error = other.code
        return response
    if not isinstance(error, ServingError):
        raise error
    request.state.record.error = error.code
    return refusal(error)
