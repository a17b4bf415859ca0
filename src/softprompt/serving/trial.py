"""A trial row: whether a server answers."""

from __future__ import annotations

import contextlib
from typing import Any

from PIL import Image

from softprompt.serving.engine import Engine
from softprompt.serving.errors import BadRequestError
from softprompt.serving.settings import Sampling
from softprompt.tasks import TokenClassification


async def trial(engine: Engine) -> None:
    """Ask one prompt for the answer to a row, or the backbone for one token. Raises ServingError where that fails.

    A task may refuse the row: it was read then. An engine without prompts, on a backbone that writes nothing, has nothing to
    try.
    """
    with contextlib.suppress(BadRequestError):
        await _ask(engine)


async def _ask(engine: Engine) -> None:
    entries = list(engine.registry)
    asked = next((entry for entry in entries if not entry.writes_text), None)
    if asked is not None:
        await engine.answer(asked.name, [trial_row(asked.tuned.task)])
        return
    written = engine.registry.base or next(iter(entries), None)
    if written is not None:
        row = trial_row(written.tuned.task)
        await (await engine.open(written.name, row, Sampling(max_new_tokens=1))).text()


def trial_row(task: Any) -> dict[str, Any]:
    """A row that the task can read."""
    value: Any = "a"
    if task.about_images:
        value = Image.new("RGB", (64, 64))
    elif isinstance(task, TokenClassification):
        value = ["a"]
    return {task.columns.get(name, name): value for name in task.fields}
