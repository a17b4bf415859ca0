"""Tokens become text while they come, up to what ends the answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

from transformers import PreTrainedTokenizerBase

FinishReason = Literal["stop", "length"]


@dataclass
class TextWriter:
    """Writes the text of one answer.

    tokenizer  of the backbone
    limit      tokens that the answer may have
    ends       tokens that end it
    stops      texts that end it, and are no part of it
    strip      whether white space at both ends is left out
    tokens     that have come
    finished   why it ended; None: it has not
    """

    tokenizer: PreTrainedTokenizerBase
    limit: int
    ends: Collection[int] = ()
    stops: Sequence[str] = ()
    strip: bool = False
    tokens: list[int] = field(default_factory=list)
    finished: FinishReason | None = None
    _start: int = 0  # of the tokens whose text the next ones may still change
    _read: int = 0  # tokens whose text is in `_pending` or was given
    _pending: str = ""
    _begun: bool = False

    def push(self, token: int) -> str:
        """The text that this token adds. Nothing, while a character is incomplete or a stop text may have begun."""
        self.tokens.append(token)
        if token in self.ends:
            self.finished = "stop"
        elif len(self.tokens) >= self.limit:
            self.finished = "length"
        return self._advance(last=self.finished is not None)

    def _advance(self, last: bool) -> str:
        before = self._decode(self.tokens[self._start : self._read])
        text = self._decode(self.tokens[self._start :])
        if len(text) > len(before) and (last or not text.endswith("�")):
            self._pending += text[len(before) :]
            self._start, self._read = self._read, len(self.tokens)
        found = [place for stop in self.stops if (place := self._pending.find(stop)) >= 0]
        if found:
            self._pending, self.finished, last = self._pending[: min(found)], "stop", True
        keep = 0 if last else self._possible_stop()
        given, self._pending = (
            self._pending[: len(self._pending) - keep],
            self._pending[len(self._pending) - keep :],
        )
        return self._stripped(given, last) if self.strip else given

    def _stripped(self, text: str, last: bool) -> str:
        if not self._begun:
            text = text.lstrip()
            self._begun = bool(text)
        kept = text.rstrip()
        if not last:
            self._pending = text[len(kept) :] + self._pending
        return kept

    def _possible_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        longest = max(map(len, self.stops), default=1) - 1
        for size in range(min(longest, len(self._pending)), 0, -1):
            if any(stop.startswith(self._pending[-size:]) for stop in self.stops):
                return size
        return 0

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
