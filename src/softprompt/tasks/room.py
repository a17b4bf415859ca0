"""The room that a prompt takes in a row, and the room that is available."""

from __future__ import annotations

from dataclasses import dataclass

from softprompt.images import ImagePooling


@dataclass(frozen=True)
class Room:
    """What a task's encoder is bound to beside the backbone: prompts with equal rooms share encoded rows.

    max_tokens     longest row in tokens, virtual tokens and answer included; None: what the backbone can read
    length         P, the virtual tokens that the template makes room for
    prefix_length  positions that a key-value prefix takes, in front of everything and beside `length`
    pooling        what a head reads of an image where the task does not say; None: what the backbone says
    """

    max_tokens: int | None = None
    length: int = 0
    prefix_length: int = 0
    pooling: ImagePooling | None = None
