"""Questions about images and captions of images, where several people have answered. B rows."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from softprompt.data import Row
from softprompt.tasks.base import TaskEncoder
from softprompt.tasks.columns import read_column
from softprompt.tasks.generation import TextGeneration
from softprompt.tasks.metrics import generation_metrics
from softprompt.tasks.template import Template

_SETTINGS = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}


@dataclass(frozen=True, config=_SETTINGS)
class ImageQuestion(TextGeneration):
    """The answer to a question about an image is a short text, or one of `choices`.

    A row holds the answers of several people in `answers_column`, of which the most frequent is learned, or a single one in
    the field of the target. The backbone must read images among text.
    """

    name: ClassVar[str] = "image-question"
    main_metric: ClassVar[str] = "vqa_accuracy"

    template: str = "{image}\nQuestion: {question}\nAnswer:"
    """The row as text with its image, which may stand anywhere; see `softprompt.tasks.template`."""
    target: str = " {answer}"
    """The answer. It begins with a space, because the template ends with a colon."""
    max_new_tokens: int = 12
    """Length of the longest generated answer in tokens, end mark included."""
    answers_column: str = "answers"
    """Column with the list of people's answers; a row without it has one answer."""

    @model_validator(mode="after")
    def _check_answers(self) -> ImageQuestion:
        _check_one_field(self.target)
        return self

    def answered(self, row: Row) -> Row:
        """Return the row with its most frequent answer, the first of equally frequent ones."""
        return _with_answer(self, row, self.answers_column, lambda texts: Counter(texts).most_common(1)[0][0])

    def evaluate(self, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """Return `vqa_accuracy` and the metrics of generated texts against the answer that is learned."""
        answers = [_texts_of(row, self.answers_column) or [self._reference(row).strip()] for row in rows]
        scores = [vqa_accuracy(p, mine) for p, mine in zip(predictions, answers, strict=True)]
        found = generation_metrics(predictions, [self._reference(row).strip() for row in rows])
        return {"vqa_accuracy": sum(scores) / len(scores), **found}

    def judge(self, encoder: TaskEncoder, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """See `evaluate`: people's answers hold no special tokens."""
        return self.evaluate(predictions, rows)


@dataclass(frozen=True, config=_SETTINGS)
class Captioning(TextGeneration):
    """The answer to an image is a text about it. A row holds one caption, or a list of which the first is learned.

    BLEU is that of sacrebleu over all captions of a row, ROUGE-L that of rouge_score with the nearest caption.
    """

    name: ClassVar[str] = "captioning"

    template: str = "{image}\nCaption:"
    """The row as text with its image, which may stand anywhere; see `softprompt.tasks.template`."""
    target: str = " {caption}"
    """The caption. It begins with a space, because the template ends with a colon."""
    captions_column: str = "captions"
    """Column with the list of captions; a row without it has one caption."""

    @model_validator(mode="after")
    def _check_captions(self) -> Captioning:
        _check_one_field(self.target)
        return self

    def answered(self, row: Row) -> Row:
        """Return the row with its first caption."""
        return _with_answer(self, row, self.captions_column, lambda texts: texts[0])

    def evaluate(self, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """See `generation_metrics`, each with the caption that suits it best; BLEU counts all captions of a row."""
        captions = [_texts_of(row, self.captions_column) or [self._reference(row).strip()] for row in rows]
        return caption_metrics(predictions, captions)

    def judge(self, encoder: TaskEncoder, predictions: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
        """See `evaluate`: captions hold no special tokens."""
        return self.evaluate(predictions, rows)


def caption_metrics(predicted: Sequence[str], captions: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the metrics of `generation_metrics` for texts that have several references each.

    Raises ValueError if there are no pairs or the lengths differ.
    """
    import sacrebleu

    if len(predicted) != len(captions) or not captions:
        raise ValueError(f"{len(predicted)} predictions for {len(captions)} rows; there must be one for each")
    each = [
        [generation_metrics([text], [caption]) for caption in mine]
        for text, mine in zip(predicted, captions, strict=True)
    ]
    best = {
        name: sum(max(one[name] for one in mine) for mine in each) / len(each)
        for name in ("exact_match", "rouge_l")
    }
    most = max(map(len, captions))
    # A stream of references has one for each row; None where a row has fewer.
    streams = [[mine[n] if n < len(mine) else None for mine in captions] for n in range(most)]
    bleu = sacrebleu.corpus_bleu(list(predicted), streams).score  # type: ignore[arg-type]
    return {**best, "bleu": float(bleu), "rows": len(captions)}


def vqa_accuracy(predicted: str, answers: Sequence[str]) -> float:
    """Return min(agreeing people / 3, 1), the mean over the sets that leave one person out (Antol et al. 2015, section 3).

    Texts agree if `vqa_text` makes them equal. A single answer is right or wrong.
    """
    found = vqa_text(predicted)
    agree = [vqa_text(answer) == found for answer in answers]
    if len(agree) == 1:
        return float(agree[0])
    return sum(min((sum(agree) - one) / 3, 1.0) for one in agree) / len(agree)


def vqa_text(text: str) -> str:
    """Return an answer as VQA compares it: small letters, digits for numbers up to ten, no articles and no punctuation.

    A point or comma between digits stays out or in as the number needs it; apostrophes are left out, so that contractions
    with and without them are the same.
    """
    text = re.sub(r"(?<=\d),(?=\d)|['’`]", "", text.lower())
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    text = "".join(" " if c in string.punctuation and c != "." else c for c in text)
    words = (_DIGITS.get(word, word) for word in text.split())
    return " ".join(word for word in words if word not in ("a", "an", "the"))


def _texts_of(row: Row, column: str) -> list[str]:
    """The texts of a list column; empty where a row has no such column. Raises ValueError for what is no list of texts."""
    if column not in row:
        return []
    value = read_column(row, column, {})
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ValueError(f"column {column!r} holds a {type(value).__name__}, expected a list of texts")
    # VQA's own files have a dictionary for each person.
    texts = [str(one["answer"] if isinstance(one, Mapping) else one) for one in value]
    if not texts:
        raise ValueError(f"column {column!r} holds an empty list, expected one text or more")
    return texts


def _with_answer(task: TextGeneration, row: Row, column: str, choose: Any) -> Row:
    """The row with the chosen one of its texts in the column that the target reads, unless that has a text of its own."""
    [field] = Template.parse(task.target).fields
    name = task.columns.get(field, field)
    if name in row or not (texts := _texts_of(row, column)):
        return row
    return {**row, name: choose(texts)}


def _check_one_field(target: str) -> None:
    if len(fields := Template.parse(target).fields) != 1:
        raise ValueError(f"target {target!r} has the fields {list(fields)}, expected one: the answer")
