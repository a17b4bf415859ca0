"""Alignment of tokens with the characters of a field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from softprompt.tasks.bound_template import BoundTemplate, Run
from softprompt.tasks.template import Field, Literal


@dataclass(frozen=True)
class Aligned:
    """A row as tokens.

    context    token ids; virtual token k is -1 - k
    positions  the positions in `context` of the field's tokens
    spans      for each of these tokens the characters of the field that it covers: the first, and one past the last
    """

    context: tuple[int, ...]
    positions: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]


def check_alignable(template: BoundTemplate, field: str) -> None:
    """Raise ValueError unless the field occurs once in the template and the tokenizer reports character offsets."""
    times = sum(
        isinstance(part, Field) and part.name == field
        for piece in template.pieces
        if isinstance(piece, Run)
        for part in piece.parts
    )
    if times != 1:
        raise ValueError(
            f"template {template.template.source!r} has {{{field}}} {times} times, expected once: its tokens are labelled"
        )
    if not template.tokenizer.is_fast:
        raise ValueError(
            f"{type(template.tokenizer).__name__} does not say which characters a token covers; load a fast tokenizer"
        )


def align(template: BoundTemplate, values: Mapping[str, str], field: str, max_tokens: int | None) -> Aligned:
    """Return a row as tokens, with the characters of `field` that they cover.

    Arguments:
        template: the template of the row
        values: the text of each field by its name
        field: the field whose tokens are aligned; it is shortened from its end if the row is too long
        max_tokens: the largest number of tokens of a row; None: no limit

    Raises:
        ValueError: if the rest of the row leaves no room for the field
    """
    found = _align(template, values, field)
    whole = len(found.context)
    while max_tokens is not None and len(found.context) > max_tokens:
        keep = len(found.spans) - (len(found.context) - max_tokens)
        if not found.spans:
            raise ValueError(
                f"a row takes {whole} tokens, max_tokens is {max_tokens}, and without {field!r} it still takes"
                f" {len(found.context)}; raise max_tokens, shorten the template, or use fewer virtual tokens"
            )
        end = found.spans[keep - 1][1] if keep > 0 else 0
        # Tokens may merge otherwise at the new end: at least one character goes each time.
        end = min(end, len(values[field]) - 1)
        values = {**values, field: values[field][:end]}
        found = _align(template, values, field)
    return found


def windows(
    template: BoundTemplate, values: Mapping[str, str], field: str, max_tokens: int | None, stride: int
) -> list[Aligned]:
    """Return a row as windows: rows of at most `max_tokens` tokens, each with a part of the field and the whole rest.

    Each window begins `stride` tokens of the field after the one before it, or fewer if a window does not hold so many. Its
    tokens are those of the whole row, and its `spans` count characters of the whole field.

    Arguments:
        template: the template of the row
        values: the text of each field by its name
        field: the field that is divided
        max_tokens: the largest number of tokens of a window; None: no limit, so that there is one window
        stride: the distance between the beginnings of two windows, in tokens of the field

    Raises:
        ValueError: if the rest of the row leaves no room for the field
    """
    whole = _align(template, values, field)
    length = len(whole.spans)
    room = length if max_tokens is None else max_tokens - (len(whole.context) - length)
    if room >= length:
        return [whole]
    if room < 1:
        raise ValueError(
            f"a row takes {len(whole.context)} tokens, max_tokens is {max_tokens}, and without {field!r} it still takes"
            f" {len(whole.context) - length}; raise max_tokens, shorten the template, or use fewer virtual tokens"
        )
    front, behind = whole.context[: whole.positions[0]], whole.context[whole.positions[-1] + 1 :]
    own = whole.context[whole.positions[0] : whole.positions[-1] + 1]
    found = []
    start = 0
    while True:
        part = own[start : start + room]
        positions = tuple(range(len(front), len(front) + len(part)))
        found.append(Aligned(front + part + behind, positions, whole.spans[start : start + room]))
        if start + room >= length:
            return found
        start += min(stride, room)


def _align(template: BoundTemplate, values: Mapping[str, str], field: str) -> Aligned:
    context: list[int] = []
    positions: list[int] = []
    spans: list[tuple[int, int]] = []
    for piece in template.pieces:
        if not isinstance(piece, Run):
            context += piece
            continue
        text, start, stop = "", 0, 0
        for part in piece.parts:
            if isinstance(part, Field) and part.name == field:
                start, stop = len(text), len(text) + len(values[field])
            if isinstance(part, Literal | Field):
                text += part.text if isinstance(part, Literal) else values[part.name]
        if not text:
            continue
        for token, (first, behind) in template.spans(piece, values):
            if max(first, start) < min(behind, stop):
                positions.append(len(context))
                spans.append((max(first, start) - start, min(behind, stop) - start))
            context.append(token)
    return Aligned(tuple(context), tuple(positions), tuple(spans))
