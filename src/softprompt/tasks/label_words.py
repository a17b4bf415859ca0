"""Words for labels, inferred from the labels' own names: what a language model can read as an answer."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

_CODE = re.compile(r"(?:[a-z]{0,3}[-_ ]?)?\d+|[0-9a-f]{8,}", re.IGNORECASE)  # "3", "A12", "LABEL_3", a hash
_YES, _NO = ("1", "true", "yes", "y"), ("0", "false", "no", "n")


@dataclass(frozen=True)
class LabelWords:
    """Label -> its word, with the space in front that it has in running text; and how the words were found.

    words    label -> word
    reason   a phrase, "the labels themselves in lower case"
    guessed  whether the words may say something else than the labels mean, so that a person should look at them
    """

    words: dict[str, str]
    reason: str
    guessed: bool = False


def infer_words(labels: Sequence[str], column: str | None = None) -> LabelWords:
    """Words for labels.

    labels  their names, two or more different ones
    column  the column that holds them, whose name says what 0 and 1 mean: `is_spam`

    A name is divided at `_`, `-`, `.`, `/` and between small and capital letters, what all names begin or end with is dropped,
    and all is lower case but for abbreviations. Names that say nothing, such as numbers and codes, become the letters A, B, C.
    """
    names = [str(label) for label in labels]
    if (pair := _yes_and_no(names, column)) is not None:
        return pair
    stripped = _without_common_ends(names)
    shouted = all(name.isupper() for name in stripped)
    told = [_spoken(name.lower() if shouted else name) for name in stripped]
    folded = [word.casefold() for word in told]
    if any(not word or _CODE.fullmatch(name) for word, name in zip(told, stripped, strict=True)):
        return _letters(names, "the labels are codes that say nothing to a language model")
    if len(set(folded)) < len(folded):
        return _letters(names, "several labels would have the same word")
    words = dict(zip(names, [f" {word}" for word in told], strict=True))
    if all(word == name for word, name in zip(told, names, strict=True)):
        return LabelWords(words, "the labels themselves, with a space in front")
    if stripped != names:
        shared = names[0].replace(stripped[0], "...", 1)
        return LabelWords(words, f"the labels without what all of them share ({shared}), as words")
    return LabelWords(words, "the labels, written as words")


def _yes_and_no(names: Sequence[str], column: str | None) -> LabelWords | None:
    """The words of two labels that say yes and no; the column's name says to what."""
    yes = [name for name in names if name.casefold() in _YES]
    no = [name for name in names if name.casefold() in _NO]
    if len(names) != 2 or len(yes) != 1 or len(no) != 1:
        return None
    asked = _spoken(re.sub(r"^(is|has|was)[_ -]", "", column or "", flags=re.IGNORECASE))
    if column and asked.casefold() not in ("", "label", "class", "target", "y", "category", "answer"):
        words = {name: f" {asked}" if name in yes else f" not {asked}" for name in names}
        return LabelWords(words, f"{no[0]} and {yes[0]} in a column called {column!r}", guessed=True)
    if yes[0].isdigit():
        return _letters(names, "0 and 1 do not say what they mean")
    return LabelWords({name: " yes" if name in yes else " no" for name in names}, "the labels say yes and no")


def _letters(names: Sequence[str], why: str) -> LabelWords:
    letters = string.ascii_uppercase
    if len(names) > len(letters):
        letters = [f"{a}{b}" for a in letters for b in letters]  # type: ignore[assignment]
    words = {name: f" {letter}" for name, letter in zip(names, letters, strict=False)}
    return LabelWords(words, f"letters, because {why}", guessed=True)


def _without_common_ends(names: Sequence[str]) -> list[str]:
    """Names without whole pieces that all of them begin or end with: LABEL_, category:."""
    front = _common_front(names)
    front = front[: max((i + 1 for i, c in enumerate(front) if c in "_-./: "), default=0)]
    back = _common_front([name[::-1] for name in names])
    back = back[: max((i + 1 for i, c in enumerate(back) if c in "_-./: "), default=0)][::-1]
    cut = [name[len(front) : len(name) - len(back)] for name in names]
    return cut if all(part.strip() for part in cut) else list(names)


def _common_front(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    return next((first[:i] for i, c in enumerate(first) if last[i : i + 1] != c), first)


def _spoken(name: str) -> str:
    """A name as words: "OrderStatus" and "order_status" are "order status", and "USA" stays."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", re.sub(r"[_\-./:]+", " ", name))
    return " ".join(word if word.isupper() and 1 < len(word) < 5 else word.lower() for word in apart.split())
