"""The errors and warnings of the library, beside ValueError and TypeError for wrong arguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SoftpromptWarning(UserWarning):
    """Something finished, but its result is probably not what was wanted."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another run."""


class TrainingDiverged(RuntimeError):  # noqa: N818 - it reads as the statement it is
    """Loss or gradient became NaN or infinite. The parameters hold the last good tensors again.

    step       the optimizer step that failed, counted from 1
    lr         learning rate of the first parameter group at that step
    last_good  set by `softprompt.fit`: the TunedPrompt of the best evaluation, or, without one, of the step before
    """

    last_good: Any = None

    def __init__(self, message: str, *, step: int, lr: float) -> None:
        super().__init__(message)
        self.step = step
        self.lr = lr


def explain(error: ValidationError, place: str = "") -> str:
    """pydantic's errors, one line each: where, what, and what was found there."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in (*([place] if place else []), *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        # The message of a check over several fields already says what it found.
        found = "" if item["type"] in ("value_error", "missing") else f"; found {item['input']!r}"
        lines.append(f"{where}: {message}{found}" if where else f"{message}{found}")
    return "\n".join(lines)
