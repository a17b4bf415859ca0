"""Which task rows ask for, found in their columns."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.beginning.chats import asked_by_chats
from softprompt.beginning.columns import (
    GROUP_NAMES,
    Column,
    answer_column,
    is_few,
    profiles,
    set_aside,
    text_columns,
)
from softprompt.beginning.decisions import Asked, Proposal, Wishes
from softprompt.data.image_folders import SUFFIXES

_PROMPTS = ("prompt", "instruction", "question", "input", "source", "query")
_RESPONSES = ("response", "completion", "output", "answer", "target", "reply", "summary", "reference")
_SEPARATORS = ("|", ";", ",")
_SHOWN = 8


def what_is_asked(rows: Sequence[Mapping[str, Any]], wishes: Wishes, proposal: Proposal) -> Asked:
    """The task of rows. Each decision goes into the proposal.

    Raises ValueError, naming the option that decides it, where columns or task are unclear.
    """
    columns = profiles(rows)
    for name in (*(wishes.text or ()), *filter(None, [wishes.label])):
        if name not in columns:
            raise ValueError(f"there is no column {name!r}; the columns are {list(columns)}")
    asked = _by_names(columns, wishes, proposal)
    if asked is not None:
        return asked
    kept = {}
    for column in columns.values():
        why = None if column.name in ((wishes.label,), *(wishes.text or ())) else set_aside(column, len(rows))
        if why and column.name != wishes.label:
            proposal.decide("columns", f"column {column.name!r} is set aside: {why}")
        else:
            kept[column.name] = column
    images = [c for c in kept.values() if c.is_text and all(_is_image(v) for v in c.values)]
    if wishes.label:
        answer, why = kept[wishes.label], "you said so"
    else:
        others = {name: c for name, c in kept.items() if c not in images and name not in (wishes.text or ())}
        answer, why = answer_column(others, len(rows))
    proposal.decide(
        "task.label_column",
        f"the answer is in column {answer.name!r}: {why}; {_described(answer, len(rows))}",
    )
    inputs = {name: c for name, c in kept.items() if name != answer.name}
    if images:
        proposal.decide("task", f"images: every value of column {images[0].name!r} names an image file")
        return _classes(answer, [images[0].name], "images", rows, proposal)
    if wishes.text:
        fields = list(wishes.text)
        proposal.decide("task.template", f"the text is in {fields}: you said so")
    else:
        of_groups = {name: c for name, c in inputs.items() if name.casefold() not in GROUP_NAMES}
        found, why = text_columns(of_groups)
        fields = [column.name for column in found]
        proposal.decide("task.template", f"the text is in {' and '.join(map(repr, fields))}: {why}")
    return _by_answer(answer, fields, rows, wishes, proposal)


def _by_names(columns: Mapping[str, Column], wishes: Wishes, proposal: Proposal) -> Asked | None:
    """Tasks whose columns have names of their own; None: the values decide."""
    named = {name.casefold(): name for name in columns}
    if wishes.label or wishes.text:
        return None
    if (chat := asked_by_chats(columns, named, proposal)) is not None:
        return chat
    words = next((named[name] for name in ("tokens", "words") if name in named), None)
    tags = next((name for name in columns if name.casefold() in ("tags", "ner_tags", "labels")), None)
    if words and tags and all(isinstance(value, list) for value in columns[tags].values):
        found = dict.fromkeys(str(tag) for value in columns[tags].values for tag in value)
        proposal.decide(
            "task", f"tags of words: {words!r} and {tags!r} hold lists, with {len(found)} different tags"
        )
        return Asked("tagging", [words], tags, sorted(found, key=lambda tag: (tag != "O", tag)))
    asked = next((named[name] for name in _PROMPTS if name in named), None)
    answer = next((named[name] for name in _RESPONSES if name in named), None)
    if (
        asked
        and answer
        and columns[answer].is_text
        and not is_few(columns[answer], len(columns[answer].values))
    ):
        fields = [asked, *([named["input"]] if asked != named.get("input") and "input" in named else [])]
        proposal.decide(
            "task", f"text generation: {asked!r} and {answer!r} are the names of a prompt and its answer, and"
            f" {columns[answer].distinct} answers are different"
        )  # fmt: skip
        return Asked("generation", fields, answer)
    return None


def _by_answer(
    answer: Column,
    fields: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    wishes: Wishes,
    proposal: Proposal,
) -> Asked:
    """The task of a text, by the values of its answer."""
    several = _several(answer)
    if several is not None:
        labels, separator = several
        how = "lists" if separator is None else f"labels separated by {separator!r}"
        proposal.decide("task", f"several labels for a text: column {answer.name!r} holds {how}")
        proposal.decide("task.labels", f"{len(labels)} labels: {_listed(labels)}")
        extra = {} if separator is None else {"separator": separator}
        return Asked("multi-label", fields, answer.name, labels, None, extra)
    numbers = answer.numbers()
    if numbers is not None and wishes.task != "classification":
        whole = all(number == int(number) for number in numbers)
        if not whole or answer.distinct > max(20, len(numbers) // 20):
            low, high = min(numbers), max(numbers)
            proposal.decide(
                "task",
                f"a number for a text: column {answer.name!r} has {answer.distinct} different numbers from {low:g}"
                f" to {high:g}",
            )
            return Asked("regression", fields, answer.name, extra={"low": low, "high": high})
        if answer.distinct > 2:
            proposal.doubts.append(
                f"the numbers of {answer.name!r} are taken as {answer.distinct} classes without an order; for a number as the"
                " answer give --task regression"
            )
    if wishes.task == "regression":
        if numbers is None:
            raise ValueError(
                f"--task regression needs numbers, and column {answer.name!r} holds {_described(answer, len(rows))}"
            )
        return Asked("regression", fields, answer.name, extra={"low": min(numbers), "high": max(numbers)})
    if not is_few(answer, len(rows)) and wishes.task != "classification":
        if answer.words < 2 and answer.distinct * 4 <= len(rows):
            return _classes(answer, fields, "classification", rows, proposal)
        proposal.decide(
            "task", f"text generation: column {answer.name!r} has {answer.distinct} different answers in {len(rows)} rows"
        )  # fmt: skip
        return Asked("generation", fields, answer.name)
    return _classes(answer, fields, "classification", rows, proposal)


def _classes(
    answer: Column, fields: Sequence[str], kind: str, rows: Sequence[Mapping[str, Any]], proposal: Proposal
) -> Asked:
    """A task that chooses one of the values of a column, with doubts about labels that are rare."""
    counts = Counter(answer.counts)
    labels = sorted(counts, key=_natural)
    if kind == "classification":
        proposal.decide(
            "task", f"one label for a text: {len(labels)} short values recur in column {answer.name!r}"
        )
    proposal.decide(
        "task.labels", f"{len(labels)} labels: {_listed([f'{label} ({counts[label]})' for label in labels])}"
    )
    if rare := [label for label in labels if counts[label] < 8]:
        proposal.doubts.append(
            f"fewer than 8 rows have the labels {rare[:_SHOWN]}: little can be learned of them, and less be measured"
        )
    folded = Counter(label.strip().casefold() for label in labels)
    if alike := [label for label in labels if folded[label.strip().casefold()] > 1]:
        proposal.doubts.append(
            f"the labels {alike[:_SHOWN]} differ in case or spaces alone: if they mean the same, say so in label_values"
        )
    if max(counts.values()) > 10 * min(counts.values()):
        proposal.doubts.append(
            f"{counts.most_common(1)[0][0]!r} has more than ten times the rows of {counts.most_common()[-1][0]!r}:"
            " look at macro_f1 and not at accuracy alone"
        )
    _doubt_rows(rows, fields, answer.name, proposal)
    return Asked(kind, fields, answer.name, labels, answer.name)


def _doubt_rows(
    rows: Sequence[Mapping[str, Any]], fields: Sequence[str], answer: str, proposal: Proposal
) -> None:
    """Doubts about rows: one text with two labels, labels that stand in their texts."""
    known: dict[tuple[str, ...], set[str]] = {}
    leaks = 0
    for row in rows:
        text = tuple(str(row.get(name, "")) for name in fields)
        known.setdefault(text, set()).add(str(row.get(answer)))
        leaks += (
            len(str(row.get(answer))) > 2 and str(row.get(answer)).casefold() in " ".join(text).casefold()
        )
    if twice := sum(len(found) > 1 for found in known.values()):
        proposal.doubts.append(
            f"{twice} texts occur with two labels or more: nothing can be right on all of these rows"
        )
    if leaks > 0.8 * len(rows):
        proposal.doubts.append(
            f"the label stands in the text in {leaks} of {len(rows)} rows: does the text give it away?"
        )


def _several(answer: Column) -> tuple[list[str], str | None] | None:
    """The labels of a column with several in a cell, and what separates them, None for lists; None: one label each."""
    lists = [_as_list(value) for value in answer.values]
    if all(found is not None for found in lists):
        return sorted({str(label) for found in lists if found for label in found}, key=_natural), None
    for separator in _SEPARATORS:
        parts = [[part.strip() for part in str(value).split(separator)] for value in answer.values]
        counts = Counter(part for found in parts for part in found if part)
        mixed = sum(len(found) > 1 for found in parts)
        short = all(len(part.split()) <= 3 for part in counts)
        if (
            mixed >= 2
            and len(counts) > 1
            and short
            and sum(counts.values()) >= 3 * len(counts)
            and len(counts) < answer.distinct
        ):
            return sorted(counts, key=_natural), separator
    return None


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, str) and value.startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) and all(isinstance(item, str | int) for item in value) else None


def _described(column: Column, rows: int) -> str:
    empty = rows - len(column.values)
    return f"{column.distinct} different values in {rows} rows, {empty or 'none'} empty"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _natural(label: str) -> tuple[int, float, str]:
    """A key that puts numbers in their order, before text."""
    try:
        return 0, float(label), label
    except ValueError:
        return 1, 0.0, label


def _is_image(value: Any) -> bool:
    return Path(str(value)).suffix.lower() in SUFFIXES
