"""Chats among the rows of a user: which columns hold them, and the task that they ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt import zoo
from softprompt.backbones.loading import has_chat_template
from softprompt.beginning.columns import Column, is_few
from softprompt.beginning.decisions import Asked, Proposal
from softprompt.tasks.chat_rows import ChatFormat, Message, answers_of, read_messages

_LISTS: tuple[ChatFormat, ...] = ("messages", "conversations")
_CHATTING = ("smollm2-135m-instruct",)  # of the built-in models


def asked_by_chats(
    columns: Mapping[str, Column], named: Mapping[str, str], proposal: Proposal
) -> Asked | None:
    """The task of columns that hold chats; None: none does. named: name of a column in small letters -> its name.

    Raises ValueError for lists that are no turns.
    """
    for form in _LISTS:
        if form in named and all(isinstance(value, list) for value in columns[named[form]].values):
            return _lists(form, columns[named[form]], proposal)
    output = columns[named["output"]] if {"instruction", "output"} <= set(named) else None
    if output is not None and output.is_text and not is_few(output, len(output.values)):
        fields = [named[name] for name in ("instruction", "input") if name in named]
        proposal.decide(
            "task",
            f"instructions with their answers: {fields} and {named['output']!r} are the columns of Alpaca",
        )
        renamed = {
            name: named[name] for name in ("instruction", "input", "output") if named.get(name, name) != name
        }
        return Asked("chat", fields, named["output"], extra=_settings("alpaca", renamed))
    return None


def _lists(form: ChatFormat, column: Column, proposal: Proposal) -> Asked:
    renamed = {} if column.name == form else {form: column.name}
    answers = turns = 0
    for number, value in enumerate(column.values):
        try:
            messages = read_messages({form: value}, form, {}, answer=True)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        answers += len(answers_of(messages))
        turns += len(messages)
    if not answers:
        raise ValueError(
            f"column {column.name!r} holds lists of turns, and no assistant's turn follows another: nothing can be learned"
        )
    proposal.decide(
        "task",
        f"chats: column {column.name!r} holds {turns} turns in {len(column.values)} rows, {answers} of them answers of the"
        " assistant, which are learned",
    )
    return Asked("chat", [column.name], None, extra=_settings(form, renamed))


def _settings(form: ChatFormat, renamed: Mapping[Any, str]) -> dict[str, Any]:
    return {"format": form, **({"columns": dict(renamed)} if renamed else {})}


def for_backbone(asked: Asked, name: str, proposal: Proposal) -> Asked:
    """What is asked of this backbone: without a chat template, instructions are a text with its answer.

    Raises ValueError for lists of turns and a backbone without a chat template.
    """
    if asked.kind != "chat":
        return asked
    if name in _CHATTING or (name not in zoo.names() and has_chat_template(name)):
        proposal.decide("task", f"{name} has a chat template, which writes the turns")
        return asked
    if asked.answer is None:
        raise ValueError(
            f"the rows are chats, and {name} has no chat template: give --backbone {_CHATTING[0]}, or another model that was"
            " trained to chat"
        )
    proposal.decide("task", f"text generation: {name} has no chat template")
    return dataclasses.replace(asked, kind="generation", extra={})


def chat_task(asked: Asked, rows: Sequence[Mapping[str, Any]], proposal: Proposal) -> dict[str, Any]:
    """The settings of the task."""
    longest = max(len(str(said["content"] or "").split()) for row in rows for said in _answers(asked, row))
    tokens = min(256, max(16, -(-int(longest * 1.6 + 8) // 8) * 8))
    proposal.decide("task.max_new_tokens", f"{tokens}: the longest answer has {longest} words")
    proposal.decide("task.place", "the virtual tokens stand at the start of the first turn, whoever says it")
    return {"name": "chat", **asked.extra, "place": 0, "max_new_tokens": tokens}


def _answers(asked: Asked, row: Mapping[str, Any]) -> list[Message]:
    form, columns = asked.extra["format"], asked.extra.get("columns", {})
    messages = read_messages(row, form, columns, answer=True)
    return [messages[number] for number in answers_of(messages)]
