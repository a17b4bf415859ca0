"""Which column holds the text, which the answer, and which are set aside; each with its reason."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LABEL_NAMES = (
    "label", "labels", "class", "category", "categories", "target", "sentiment", "intent", "topic", "queue", "tag", "tags",
    "rating", "stars", "score", "value", "answer", "y",
)  # fmt: skip
TEXT_NAMES = (
    "text",
    "sentence",
    "review",
    "comment",
    "message",
    "content",
    "body",
    "title",
    "question",
    "document",
)
PAIRS = (
    ("premise", "hypothesis"),
    ("question", "passage"),
    ("question", "context"),
    ("claim", "evidence"),
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("question1", "question2"),
    ("text_a", "text_b"),
)
GROUP_NAMES = (
    "user",
    "user_id",
    "author",
    "author_id",
    "thread",
    "thread_id",
    "patient",
    "patient_id",
    "group",
    "session",
)
SPLIT_NAMES = ("split", "fold", "subset", "partition")

_IDS = re.compile(r"(.*[_ -])?(id|uuid|guid|index|idx|key|nr|no)|unnamed.*", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].*)?|\d{1,2}[./]\d{1,2}[./]\d{2,4}( .*)?")
_URL = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Column:
    """What a column holds.

    values   of the rows, those that are empty left out
    share    of rows whose value is not empty
    counts   value as text -> rows; empty for lists and mappings
    words    mean number of words of a value
    """

    name: str
    values: Sequence[Any]
    share: float
    counts: Mapping[str, int]
    words: float

    @property
    def distinct(self) -> int:
        return len(self.counts)

    @property
    def is_text(self) -> bool:
        return bool(self.values) and all(isinstance(value, str | int | float | bool) for value in self.values)

    def numbers(self) -> list[float] | None:
        """The values as numbers; None where one is no number."""
        found = []
        for value in self.values:
            try:
                number = float(value)
            except (TypeError, ValueError):
                return None
            if not math.isfinite(number):
                return None
            found.append(number)
        return found


def profiles(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    """Every column of the rows by its name. "NA", "None" and "null" are values like others."""
    names = dict.fromkeys(name for row in rows for name in row)
    found = {}
    for name in names:
        values = [value for row in rows if not _is_empty(value := row.get(name))]
        plain = [str(value) for value in values if isinstance(value, str | int | float | bool)]
        found[name] = Column(
            name,
            values,
            len(values) / len(rows),
            Counter(plain) if len(plain) == len(values) else {},
            sum(len(text.split()) for text in plain) / max(1, len(plain)),
        )
    return found


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def set_aside(column: Column, rows: int) -> str | None:
    """Why a column takes no part, as a phrase; None: it may be the text or the answer."""
    if column.share < 0.5:
        return f"it is empty in {1 - column.share:.0%} of the rows"
    if not column.is_text:
        return None
    texts = list(column.counts)
    if column.distinct == 1 and rows > 1:
        return f"it is {texts[0]!r} in every row"
    if all(_DATE.fullmatch(text) for text in texts):
        return "it holds dates"
    if all(_URL.fullmatch(text) for text in texts):
        return "it holds addresses"
    short = column.words <= 1.01 and max(map(len, texts)) <= 40
    if column.distinct == len(column.values) and short and _IDS.fullmatch(column.name):
        return "it numbers or names the rows"
    numbers = column.numbers()
    if numbers is not None and numbers in (
        list(map(float, range(rows))),
        list(map(float, range(1, rows + 1))),
    ):
        return "it numbers the rows"
    return None


def answer_column(columns: Mapping[str, Column], rows: int) -> tuple[Column, str]:
    """The column with the right answer, and why it is that one.

    Raises ValueError, naming the option, where none or several could be it.
    """
    named = [
        columns[name]
        for name in sorted(columns, key=_rank(LABEL_NAMES))
        if _rank(LABEL_NAMES)(name) < len(LABEL_NAMES)
    ]
    if named:
        return named[0], f"its name is {named[0].name!r}"
    few = [column for column in columns.values() if is_few(column, rows)]
    if len(few) == 1:
        return few[0], f"it is the only column with few different values, {few[0].distinct} in {rows} rows"
    if few:
        told = ", ".join(f"{column.name!r} ({column.distinct} different values)" for column in few)
        raise ValueError(
            f"the label could be in several columns: {told}; say which, as in --label {few[0].name}"
        )
    raise ValueError(
        f"no column looks like a label: the columns are {list(columns)}, and each has many different values; say which"
        " holds the right answer, as in --label COLUMN"
    )


def is_few(column: Column, rows: int) -> bool:
    """Whether a column has the few short values that labels have."""
    most = max(20, math.isqrt(rows))
    return (
        column.is_text
        and 2 <= column.distinct <= most
        and column.words <= 5
        and len(column.values) >= 2 * column.distinct
    )


def text_columns(columns: Mapping[str, Column]) -> tuple[list[Column], str]:
    """The column or the two columns with the text, and why. Raises ValueError, naming the option, where that is unclear."""
    for pair in PAIRS:
        found = [columns[name] for wanted in pair for name in columns if name.casefold() == wanted]
        if len(found) == 2:
            return (
                found,
                f"their names say that they belong together: {found[0].name!r} and {found[1].name!r}",
            )
    texts = [column for column in columns.values() if column.is_text and column.numbers() is None]
    if not texts:
        raise ValueError(
            f"no column holds text: the columns are {list(columns)}; say which, as in --text COLUMN"
        )
    if len(texts) == 1:
        return texts, f"it is the only column with text, {texts[0].words:.0f} words on average"
    texts.sort(key=lambda column: -column.words)
    first, second = texts[:2]
    named = [column for column in texts if _rank(TEXT_NAMES)(column.name) < len(TEXT_NAMES)]
    if first.words >= 2 * second.words:
        return [first], f"its texts are the longest, {first.words:.0f} words on average"
    if len(named) == 1:
        return named, f"its name is {named[0].name!r}"
    raise ValueError(
        f"the text could be in {first.name!r} ({first.words:.0f} words on average) or in {second.name!r}"
        f" ({second.words:.0f} words): say which, as in --text {first.name}, or name both, as in --text {first.name}"
        f" --text {second.name}"
    )


def _rank(names: Sequence[str]) -> Any:
    return lambda name: names.index(name.casefold()) if name.casefold() in names else len(names)
