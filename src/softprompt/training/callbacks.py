"""Callbacks: code of the user's that a run calls while it is trained, and that may stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from softprompt.training.progress import Record

STOP: Final = "stop"
Answer = Literal["stop"] | None


class Callback:
    """Is told of what happens in a run, on the main process only. A subclass has the methods that it needs.

    A method that returns "stop" ends the run after this step: it is evaluated, a checkpoint is written, and the best
    tensors are the result.
    """

    def on_step(self, record: Record) -> Answer:
        """A step was made."""
        return None

    def on_evaluate(self, record: Record, *, is_best: bool) -> Answer:
        """Validation rows were evaluated: `record.metrics` has the result; `is_best`: its tensors are the best so far."""
        return None

    def on_save(self, step: int, folder: Path) -> None:
        """A checkpoint of this step was written to the folder."""
