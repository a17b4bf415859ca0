"""Functions that write a prompt of words into a template, and check that the tokenizer reads the same words again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.search.scoring import substituted
from softprompt.search.words import Survives
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.template import Bos, Field, Literal, Mask, Part, Soft, parse_template
from softprompt.tasks.tokenizing import tokenize

_PROBES = 8  # rows with different neighbours of the slots, on which a written prompt is checked
_LOOKED_AT = 256  # rows from which these are chosen


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the exact text of token ids: nothing is skipped, and no spaces are cleaned up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def write_into(template: str, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template with words in place of its soft slots: an ordinary template, for any method and tool.

    In a template without a slot they stand at the front, after a `{bos}`, as virtual tokens do.
    Raises ValueError if the slots do not take exactly these words.
    """
    parts = list(parse_template(template))
    if not any(isinstance(part, Soft) for part in parts):
        parts.insert(parts.index(Bos()) + 1 if Bos() in parts else 0, Soft())
    numbered = sum(part.length or 0 for part in parts if isinstance(part, Soft))
    rest = len(ids) - numbered
    if rest < 0 or (rest > 0 and Soft() not in parts):
        raise ValueError(
            f"the soft slots of template {template!r} take {numbered} words, the prompt has {len(ids)}"
        )
    source, start = "", 0
    for part in parts:
        if isinstance(part, Soft):
            length = rest if part.length is None else part.length
            source += _escaped(decode(tokenizer, ids[start : start + length]))
            start += length
        else:
            source += _source(part)
    return source


def written_task(task: Task, ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Task | None:
    """Return the task with the words in its template; None for a task without a template."""
    template = getattr(task, "template", None)
    if not isinstance(template, str):
        return None
    settings: Any = task  # tasks are dataclasses, which their abstract class does not say
    changed: Task = dataclasses.replace(settings, template=write_into(template, ids, tokenizer))
    return changed


def survival_check(
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    bind: Callable[[Task, int], TaskEncoder],
    encoder: TaskEncoder,
    data: Sequence[Row],
) -> Survives:
    """Return a check that words, written as text, are read as the same words, both alone and inside the template.

    The template is filled with up to eight of the first 256 rows, chosen so that the tokens next to the slots differ.

    Arguments:
        task: the task with its soft slots
        tokenizer: the tokenizer of the backbone
        bind: (task, virtual tokens) -> encoder
        encoder: the encoder of the task with its P virtual tokens
        data: rows to fill the template with
    """
    # Spectrograms are expensive to compute, and they change no token.
    looked_at = _PROBES if getattr(task, "media", None) else _LOOKED_AT
    rows = [encoder.encode(row, answer=False) for row in data[:looked_at]]
    probes = _different_neighbours(rows)
    length = 1 + max((-1 - atom for row in rows[:1] for atom in row.context if atom < 0), default=-1)

    def survives(ids: Sequence[int]) -> bool:
        if tokenize(tokenizer, decode(tokenizer, ids)) != list(ids):
            return False
        if len(ids) != length:  # the beginning of a prompt does not fill the template
            return True
        written = written_task(task, ids, tokenizer)
        if written is None:
            return True
        plain = bind(written, 0)
        return all(
            plain.encode(data[i], answer=False).context == substituted(rows[i].context, ids) for i in probes
        )

    return survives


def _different_neighbours(rows: Sequence[EncodedRow]) -> list[int]:
    seen: dict[tuple[int, ...], int] = {}
    for i, row in enumerate(rows):
        padded = (-1, *row.context, -1)
        around = tuple(
            atom
            for before, here, after in zip(padded, row.context, padded[2:], strict=False)
            for atom in (before, after)
            if here < 0 and atom >= 0
        )
        seen.setdefault(around, i)
        if len(seen) == _PROBES:
            break
    return list(seen.values())


def _source(part: Part) -> str:
    match part:
        case Literal(text):
            return _escaped(text)
        case Field(name, cut):
            return f"{{{name}:cut}}" if cut else f"{{{name}}}"
        case Soft(length):
            return "{soft}" if length is None else f"{{soft:{length}}}"
        case Bos():
            return "{bos}"
        case Mask():
            return "{mask}"


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
