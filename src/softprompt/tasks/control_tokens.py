"""Control tokens of a tokenizer (</s>, <|im_end|>, [MASK]) in texts: those of a template work, those of a value are text."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakKeyDictionary

from transformers import AddedToken, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class ControlTokens:
    """The special tokens of a tokenizer as they are written.

    ids      text of a token -> its id
    tokens   the same -> how it treats the blanks around it
    pattern  finds the longest token at each place of a text; None: there are no tokens
    """

    ids: Mapping[str, int]
    tokens: Mapping[str, AddedToken]
    pattern: re.Pattern[str] | None
    _plain: list[PreTrainedTokenizerBase] = field(default_factory=list)

    _known: ClassVar[
        WeakKeyDictionary[PreTrainedTokenizerBase, tuple[tuple[int, int | None], ControlTokens]]
    ] = WeakKeyDictionary()

    @staticmethod
    def of(tokenizer: PreTrainedTokenizerBase, rows: int | None = None) -> ControlTokens:
        """The control tokens of a tokenizer, found once unless tokens are added to it.

        rows: of the embedding table; tokens beyond it are none that the model could know, and are not among them
        """
        key = len(tokenizer), rows
        found, known = ControlTokens._known.get(tokenizer, (None, None))
        if known is None or found != key:
            known = _found(tokenizer, rows)
            ControlTokens._known[tokenizer] = key, known
        return known

    def are_in(self, text: str) -> bool:
        return self.pattern is not None and self.pattern.search(text) is not None

    def divided(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, str | int]] | None:
        """Texts in a row, cut at the control tokens of a template: each part with where it begins, a text or a token's id.

        texts: each with whether it is the template's own

        None if no value has part of a control token: then the joined text is read as the template's author expects.
        """
        if self.pattern is None:
            return None
        joined = "".join(text for text, _ in texts)
        found = [match.span(1) for match in self.pattern.finditer(joined)]
        if not found:
            return None
        start, in_values = 0, False
        for text, own in texts:
            stop = start + len(text)
            in_values |= not own and any(first < stop and last > start for first, last in found)
            start = stop
        return self._cut(texts) if in_values else None

    def _cut(self, texts: Sequence[tuple[str, bool]]) -> list[tuple[int, str | int]]:
        parts: list[tuple[int, str | int]] = []
        place = begin = 0  # of the text that is read, and of the part that is gathered
        gathered = ""

        def close() -> None:
            nonlocal gathered, begin
            if gathered:
                parts.append((begin, gathered))
            gathered = ""

        for text, own in texts:
            done = 0
            while own and (match := self.pattern.search(text, done)):  # type: ignore[union-attr]
                first, last = match.span(1)
                token = self.tokens[match[1]]
                gathered += text[done:first]
                if token.lstrip:
                    gathered = gathered.rstrip()
                close()
                parts.append((place + first, self.ids[match[1]]))
                done = last
                if token.rstrip:
                    done += len(text[done:]) - len(text[done:].lstrip())
                begin = place + done
            gathered += text[done:]
            place += len(text)
        close()
        return parts

    def plain(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        """A copy of the tokenizer that knows no control tokens: a setting of its own would be seen by other threads."""
        if not self._plain:
            plain = copy.deepcopy(tokenizer)
            plain.split_special_tokens = True
            self._plain.append(plain)
        return self._plain[0]


def _found(tokenizer: PreTrainedTokenizerBase, rows: int | None) -> ControlTokens:
    tokens = {
        token.content: (i, token)
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content and (rows is None or i < rows)
    }
    written = sorted(tokens, key=len, reverse=True)
    pattern = re.compile(f"(?=({'|'.join(map(re.escape, written))}))") if written else None
    return ControlTokens(
        {text: i for text, (i, _) in tokens.items()},
        {text: t for text, (_, t) in tokens.items()},
        pattern,
    )
