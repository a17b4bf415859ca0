"""A chat as text, by the model's own chat template, with the place of the virtual tokens and the texts of the turns marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from softprompt.tasks.bound_template import BoundTemplate, Run
from softprompt.tasks.chat_rows import Message
from softprompt.tasks.control_tokens import ControlTokens
from softprompt.tasks.template import Field, Part, Template
from softprompt.tasks.template import Literal as Text

Place = int | Literal["front", "system", "answer"]
Side = Literal["start", "end"]

# Characters for private use, which no text has by accident: around what a turn says, and where virtual tokens stand.
_OPEN, _CLOSE, _SOFT = "\ue000", "\ue001", "\ue002"
_MARKS = re.compile(f"[{_OPEN}{_CLOSE}{_SOFT}]")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer, or another one.

    tokenizer       of the backbone
    source          a template in the place of the tokenizer's own; None: its own
    settings        what the template is told beside the turns (enable_thinking, date_string)
    control_tokens  whether what looks like a control token in a turn is text, or that token
    rows            of the embedding table, where the tokenizer has tokens beyond it
    """

    tokenizer: PreTrainedTokenizerBase
    source: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    control_tokens: Literal["text", "tokens"] = "text"
    rows: int | None = None

    def render(self, messages: Sequence[Message], *, answer: bool = False) -> str:
        """The text of turns. Raises ValueError for turns that the template does not take.

        answer: whether the last turn is an answer; otherwise the header of an answer follows the turns
        """
        try:
            text: Any = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.source,
                tokenize=False,
                add_generation_prompt=not answer,
                **self.settings,
            )
        except Exception as error:  # templates raise what they like
            roles = [message["role"] for message in messages]
            raise ValueError(f"the chat template does not take turns of {roles}: {error}") from error
        return str(text)

    def marked(
        self, messages: Sequence[Message], *, answer: bool = False, soft: tuple[int, Side] | None = None
    ) -> str:
        """The text of turns, in which what they say is marked if it has control tokens that are to be read as text.

        soft: number of the turn in which the place of the virtual tokens is marked, and on which side of what it says

        Raises ValueError if the template writes marked turns differently.
        """
        text = self.render(_placed(messages, soft), answer=answer)
        if not self._must_mark(messages):
            return text
        turns = [_around(message, _OPEN, _CLOSE) for message in messages]
        marked = self.render(_placed(turns, soft), answer=answer)
        if without_marks(marked) != text:
            raise ValueError(
                "a turn holds a control token of the tokenizer, and the chat template does not write the turns as they are, so"
                ' that it cannot be told from the template\'s own: remove it, or set control_tokens="tokens"'
            )
        return marked

    def _must_mark(self, messages: Sequence[Message]) -> bool:
        if self.control_tokens == "tokens":
            return False
        control = ControlTokens.of(self.tokenizer, self.rows)
        return any(control.are_in(message["content"] or "") for message in messages)

    def split(self, messages: Sequence[Message], place: Place, side: Side) -> tuple[str, str]:
        """The text of turns and of the answer's header, in front of the virtual tokens and behind them.

        Raises ValueError for a place that the chat does not have, and if the template does not keep it.
        """
        if place in ("front", "answer"):
            text = self.marked(messages)
            bos = str(self.tokenizer.bos_token or "")
            at = len(text) if place == "answer" else len(bos) if text.startswith(bos) else 0
            return text[:at], text[at:]
        messages, number = _named(messages, place)
        content = messages[number]["content"]
        placed = self.marked(messages, soft=(number, side))
        if (times := placed.count(_SOFT)) != 1:
            raise ValueError(
                f"the chat template writes turn {number} ({messages[number]['role']}) {times} times, so that the virtual tokens"
                " have no one place in it: choose another `place`, such as front"
            )
        if content and placed.replace(_SOFT, "") != self.marked(messages):
            raise ValueError(
                f"the chat template changes turn {number} ({messages[number]['role']}) where virtual tokens stand in it: choose"
                " another `place`, such as front"
            )
        front, behind = placed.split(_SOFT)
        return front, behind

    def tokens(self, marked: str) -> list[int]:
        """The token ids of a part of a marked text; no special tokens are added to those that the template writes."""
        parts: list[Part] = []
        values: dict[str, str] = {}
        for number, piece in enumerate(re.split(f"[{_OPEN}{_CLOSE}]", marked)):
            if number % 2 and piece:
                values[str(number)] = piece
                parts.append(Field(str(number)))
            elif piece:
                parts.append(Text(piece))
        reader = BoundTemplate(
            Template("", ()), self.tokenizer, (), control_tokens=self.control_tokens, rows=self.rows
        )
        return reader.tokens(Run(tuple(parts)), values)

    def end_of_turn(self) -> str | None:
        """The control token that the template writes behind an answer; None: it writes none."""
        answer = "answer"
        text = self.render(
            [{"role": "user", "content": "question"}, {"role": "assistant", "content": answer}], answer=True
        )
        pattern = ControlTokens.of(self.tokenizer, self.rows).pattern
        match = None if pattern is None else pattern.search(text.rpartition(answer)[2])
        return None if match is None else match[1]


def without_marks(text: str) -> str:
    return re.sub(f"[{_OPEN}{_CLOSE}]", "", text)


def behind(marked: str, length: int) -> str:
    """A marked text behind its first `length` characters, marks not counted. No turn's text may lie across that place."""
    if not _MARKS.search(marked):
        return marked[length:]
    place = 0
    while length:
        length -= not _MARKS.match(marked[place])
        place += 1
    marks = place - len(without_marks(marked[:place]))
    return marked[place + marks % 2 :]  # the mark that closes a turn's text belongs to what was before


def check_unmarked(messages: Sequence[Message]) -> None:
    """Raise ValueError for a turn with a character that marks places here."""
    for number, message in enumerate(messages):
        if found := _MARKS.search(message["content"] or ""):
            raise ValueError(
                f"turn {number} holds the private-use character U+{ord(found[0]):04X}, which marks places here: remove it"
            )


def _named(messages: Sequence[Message], place: Place) -> tuple[list[Message], int]:
    """The turns, and the number of the one that the place names. A system turn is added where it is named and missing."""
    if place == "system":
        if messages[0]["role"] != "system":
            messages = [{"role": "system", "content": ""}, *messages]
        return list(messages), 0
    assert isinstance(place, int)
    if not -len(messages) <= place < len(messages):
        raise ValueError(
            f"place is {place}, and {len(messages)} turns stand before the answer: the first is 0, the last -1"
        )
    return list(messages), place % len(messages)


def _placed(messages: Sequence[Message], soft: tuple[int, Side] | None) -> list[Message]:
    """The turns, one of them with a mark where virtual tokens stand; it is outside of the marks around what the turn says."""
    if soft is None:
        return list(messages)
    number, side = soft
    marks = (_SOFT, "") if side == "start" else ("", _SOFT)
    return [_around(m, *marks) if i == number else m for i, m in enumerate(messages)]


def _around(message: Message, before: str, behind: str) -> Message:
    """A turn with marks around what it says, inside the spaces at its ends: templates strip these."""
    content = message["content"]
    if content is None:
        return message
    core = content.strip()
    start = content.index(core)
    text = content[:start] + before + core + behind + content[start + len(core) :]
    return {**message, "content": text}
