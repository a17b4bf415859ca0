"""What the library raises and warns with, beside ValueError and TypeError for callers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SoftpromptWarning(UserWarning):
    """Something ran to its end, but its result is probably not what was wanted."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, is damaged, or belongs to another run."""


class TrainingDiverged(RuntimeError):  # noqa: N818 - it reads as the statement it is
    """Loss or gradient became NaN or infinite. The last good tensors are back in the parameters.

    step  the optimizer step that could not be made, counted from 1
    lr    learning rate of the first group at that step
    last_good  where `softprompt.fit` raised it: the TunedPrompt of the best evaluation, or else before that step
    """

    last_good: Any = None

    def __init__(self, message: str, *, step: int, lr: float) -> None:
        super().__init__(message)
        self.step = step
        self.lr = lr


def explain(error: ValidationError, place: str = "") -> str:
    """pydantic's errors in a line each: where, what, and what was found there."""
    lines = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in (*([place] if place else []), *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        # A check over several fields has said itself what it found.
        found = "" if item["type"] in ("value_error", "missing") else f"; found {item['input']!r}"
        lines.append(f"{where}: {message}{found}" if where else f"{message}{found}")
    return "\n".join(lines)
