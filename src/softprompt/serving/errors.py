"""What a request can be refused with. Each kind has its HTTP status, and a code in OpenAI's manner."""

from __future__ import annotations

from typing import ClassVar


class ServingError(RuntimeError):
    """A request that was not answered. `retry_after`: seconds after which it may be, where that makes sense."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    kind: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, retry_after: float | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.param = param


class BadRequestError(ServingError):
    """A request that can never be answered as it is."""

    status = 400
    code = "invalid_request"
    kind = "invalid_request_error"


class NotAuthorisedError(BadRequestError):
    """No key, or a wrong one."""

    status = 401
    code = "invalid_api_key"
    kind = "authentication_error"


class NotAllowedError(BadRequestError):
    """A key that may not do this."""

    status = 403
    code = "permission_denied"
    kind = "permission_error"


class PromptNotFoundError(BadRequestError):
    """No prompt of this name."""

    status = 404
    code = "model_not_found"


class BodyTooLargeError(BadRequestError):
    """More bytes than a request may have."""

    status = 413
    code = "request_too_large"


class WrongContentTypeError(BadRequestError):
    """A body that is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


class BodyTimedOutError(BadRequestError):
    """A body that did not arrive in time."""

    status = 408
    code = "request_timeout"


class QueueFullError(ServingError):
    """More work than the server takes on at a time, or than a key may ask for."""

    status = 429
    code = "rate_limit_exceeded"
    kind = "rate_limit_error"


class TimedOutError(ServingError):
    """An answer that was not ready in time."""

    status = 504
    code = "timeout"


class StoppedError(ServingError):
    """The engine is not started, or it is stopping."""

    status = 503
    code = "server_stopping"


class UnknownRouteError(BadRequestError):
    """No such path, or another method."""

    status = 404
    code = "not_found"


class ClientGoneError(BadRequestError):
    """The client closed the connection; nobody reads this."""

    status = 499
    code = "client_gone"
