"""What the library raises and warns with, beside ValueError and TypeError for callers."""

from __future__ import annotations

from typing import Any


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
