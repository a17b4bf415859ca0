"""Errors and warnings of the library, beside ValueError and TypeError for wrong arguments; and values as messages show them."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


class SoftpromptWarning(UserWarning):
    """A result is probably not what the user wanted."""


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
    """pydantic's errors with a line for each place: where it is, what was expected and what was found."""
    expected: dict[tuple[str, ...], list[str]] = {}
    found: dict[tuple[str, ...], str] = {}
    for item in error.errors(include_url=False):
        where = tuple(str(part) for part in (*([place] if place else []), *_keys(item["loc"])))
        message = item["msg"].removeprefix("Value error, ")
        others = expected.setdefault(where, [])
        # What a value may be of several kinds gets an error for each.
        told = message.removeprefix("Input should be ") if others else message
        if told not in others:
            others.append(told)
        # The message of a check over several fields already says what it found.
        if item["type"] not in ("value_error", "missing"):
            found[where] = f"; found {shown(item['input'])}"
    lines = []
    for where, messages in list(expected.items())[:_MOST_ERRORS]:
        told = " or ".join(messages) + found.get(where, "")
        lines.append(f"{'.'.join(where)}: {told}" if where else told)
    if len(expected) > _MOST_ERRORS:
        lines.append(f"and {len(expected) - _MOST_ERRORS} more")
    return "\n".join(lines)


_MOST_ERRORS = 10
_KINDS = frozenset({"str", "int", "float", "bool", "bytes", "none", "nullable", "date"})


def _keys(loc: Sequence[int | str]) -> list[int | str]:
    """The keys of a place, without the names that pydantic has for the kinds of value that may stand there."""
    keys = [part for part in loc if not (isinstance(part, str) and re.search(r"[\[\](]", part))]
    while len(keys) > 1 and keys[-1] in _KINDS:
        keys.pop()
    return keys


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long or deep."""
    text = _CUT.repr(value)
    return text if len(text) <= 300 else text[:300] + "..."


_CUT = reprlib.Repr()
_CUT.maxlevel, _CUT.maxlist, _CUT.maxtuple, _CUT.maxdict = 4, 8, 8, 8
_CUT.maxstring = _CUT.maxother = 120


def printable(text: str) -> str:
    """The text with control characters, and those that turn the direction of writing, as escapes such as \\x1b."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # not tab and line feed
