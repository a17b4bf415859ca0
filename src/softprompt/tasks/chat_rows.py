"""Rows of chats as people have them: OpenAI's messages, ShareGPT's conversations, Alpaca's instructions."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from softprompt.data import Row
from softprompt.tasks.columns import read_column, read_fields

Message = dict[str, Any]
"""One turn as chat templates read it: `role`, `content`, and whatever else it has (`tool_calls`, `name`)."""

ChatFormat = Literal["messages", "conversations", "alpaca"]

COLUMNS: Mapping[ChatFormat, tuple[str, ...]] = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
}
"""The columns of each format, the one that a row must have first."""

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "function": "tool", "observation": "tool"}


def read_messages(row: Row, form: ChatFormat, columns: Mapping[str, str], *, answer: bool) -> list[Message]:
    """The turns of a row. A text in the place of turns is one turn of the user.

    Arguments:
        row: the row
        form: how it writes its turns
        columns: name in the format -> column of the data, where the two differ
        answer: whether an Alpaca row must have its output

    Raises:
        ValueError: for a missing column, and for turns that are not of this format
    """
    if form == "alpaca":
        return _alpaca(row, columns, answer)
    if form not in row and columns.get(form, form) not in row and {"role", "from"} & set(row):
        raise ValueError(
            f"a single turn was given as a row: pass a list of chats, as in [{{{form!r}: [...]}}]"
        )
    value = read_column(row, form, columns)
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(
            f"column {columns.get(form, form)!r} is {reprlib.repr(value)}, expected a list of turns"
        )
    turns = list(value)
    if not turns:
        raise ValueError(f"column {columns.get(form, form)!r} holds no turns")
    return [_message(turn, number, form) for number, turn in enumerate(turns)]


def _alpaca(row: Row, columns: Mapping[str, str], answer: bool) -> list[Message]:
    """The input, where there is one, stands under the instruction behind an empty line."""
    asked = read_fields(row, ["instruction"], columns, COLUMNS["alpaca"])["instruction"]
    if row.get(columns.get("input", "input")) not in (None, ""):
        asked += "\n\n" + read_fields(row, ["input"], columns)["input"]
    messages = [{"role": "user", "content": asked}]
    if answer:
        given = read_fields(row, ["output"], columns, COLUMNS["alpaca"])["output"]
        messages.append({"role": "assistant", "content": given})
    return messages


def _message(turn: Any, number: int, form: ChatFormat) -> Message:
    keys = ("role", "content") if form == "messages" else ("from", "value")
    if isinstance(turn, Mapping) and form == "conversations" and "role" in turn:
        keys = ("role", "content")
    if not isinstance(turn, Mapping) or not isinstance(turn.get(keys[0]), str):
        raise ValueError(f"turn {number} is {reprlib.repr(turn)}, expected {keys[0]!r} and {keys[1]!r}")
    message = {key: value for key, value in turn.items() if key not in keys and value is not None}
    role = str(turn[keys[0]])
    calls = message.get("tool_calls")
    if calls is not None:
        message["tool_calls"] = [_call(call) for call in calls]
    content = _text(turn.get(keys[1]), number)
    if content is None and not calls:
        raise ValueError(f"turn {number} ({role}) has no {keys[1]!r}")
    return {"role": _ROLES.get(role, role), "content": content, **message}


def _text(content: Any, number: int) -> str | None:
    """The text of a turn, whose parts are joined. Raises ValueError for what is not text."""
    if content is None or isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else [content]
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"turn {number} holds {reprlib.repr(content)}, expected text: other parts are not read"
        )
    return "".join(texts)  # type: ignore[arg-type]


def _call(call: Any) -> Any:
    """A tool call whose arguments are values: OpenAI writes them as JSON text, chat templates expect a mapping."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def answers_of(messages: Sequence[Message]) -> list[int]:
    """Numbers of the assistant's turns that answer another turn; what an assistant says first answers nobody."""
    return [
        number
        for number, message in enumerate(messages)
        if message["role"] == "assistant" and any(one["role"] != "system" for one in messages[:number])
    ]
