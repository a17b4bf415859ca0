"""A whole config proposed for rows: task, split, backbone, method and recipe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from softprompt.beginning.asking import what_is_asked
from softprompt.beginning.chats import chat_task, for_backbone
from softprompt.beginning.decisions import Asked, Proposal, Wishes
from softprompt.beginning.reading import read
from softprompt.beginning.splitting import sources
from softprompt.tasks.label_words import infer_words

FAMILIES = {
    "minilm-l6": "text-encoder",
    "smollm2-135m-instruct": "causal-lm",
    "news-lm-xs": "causal-lm",
    "news-lm-s": "causal-lm",
    "news-lm-m": "causal-lm",
    "vit-s14-saliency": "vision-encoder",
    "emoji-clip": "vision-language",
}
_MOST_WORDS = 30  # labels that are answered by words; above it a head
_LONG = 200  # words of a text above which rows are cut, so that training stays quick
_EPOCHS = 10


def propose(source: str, wishes: Wishes | None = None) -> Proposal:
    """Look at the rows of a source, and propose a config that trains as it is.

    source  a file, an image folder, a built-in data set or one on the hub, as in a config
    wishes  what is decided already

    Raises ValueError where the rows leave something open, naming the option that decides it.
    """
    wishes = wishes or Wishes()
    rows, encoding, said = read(source, wishes.encoding)
    proposal = Proposal()
    proposal.decide("data", f"{len(rows)} rows with the columns {', '.join(map(repr, rows[0]))}")
    for line in said:
        proposal.decide("data", line)
    asked = what_is_asked(rows, wishes, proposal)
    name, family = _backbone(asked, wishes, proposal)
    asked = for_backbone(asked, name, proposal)
    task = task_for(asked, family, rows, proposal)
    proposal.config = {
        "backbone": name,
        "task": task,
        "method": _method(asked, family, wishes, proposal),
        "data": sources(source, rows, asked, encoding, proposal),
        "recipe": _recipe(asked, family, rows, proposal),
        "seed": 0,
    }
    return proposal


def _backbone(asked: Asked, wishes: Wishes, proposal: Proposal) -> tuple[str, str]:
    """The name of the backbone and its family."""
    if wishes.backbone:
        family = FAMILIES.get(wishes.backbone)
        if family is None:
            from softprompt.backbones.loading import family_of

            family = family_of(wishes.backbone)
        proposal.decide("backbone", f"{wishes.backbone}: you said so; it is of the family {family}")
        return wishes.backbone, family
    if asked.kind == "images":
        proposal.decide("backbone", "vit-s14-saliency reads images, is built in and small")
        return "vit-s14-saliency", "vision-encoder"
    if asked.kind in ("generation", "chat"):
        proposal.decide(
            "backbone",
            "smollm2-135m-instruct writes text, is built in and small; for good texts take a larger one",
        )
        return "smollm2-135m-instruct", "causal-lm"
    proposal.decide("backbone", "minilm-l6 reads short English texts, is built in and quick on a CPU")
    return "minilm-l6", "text-encoder"


def task_for(
    asked: Asked, family: str, rows: Sequence[Mapping[str, Any]], proposal: Proposal
) -> dict[str, Any]:
    """The settings of the task that rows ask for, for a backbone of this family."""
    if asked.kind == "chat":
        return chat_task(asked, rows, proposal)
    fields, columns = _fields(asked)
    if len(fields) > 1:
        longest = max(zip(fields, asked.fields, strict=True), key=lambda pair: _mean_words(rows, pair[1]))[0]
        marks = [f"{{{name}:cut}}" if name == longest else f"{{{name}}}" for name in fields]
    else:
        marks = [f"{{{name}}}" for name in fields]
    text = "\n".join(marks)
    renamed = {"columns": columns} if columns else {}
    answer = asked.answer or ""
    match asked.kind:
        case "images":
            label = {} if answer == "label" else {"label_column": answer}
            image = {} if asked.fields[0] == "image" else {"columns": {"image": asked.fields[0]}}
            kind = "image-text-classification" if family == "vision-language" else "image-classification"
            return {"name": kind, "labels": list(asked.labels), **label, **image}
        case "classification" if family != "text-encoder" and len(asked.labels) <= _MOST_WORDS:
            return _answered_by_words(text, asked, family, proposal) | renamed
        case "classification":
            proposal.decide("task", f"a head answers: {_why_head(family)}")
            label = {} if answer == "label" else {"label_column": answer}
            return {
                "name": "sequence-classification",
                "template": text,
                "labels": list(asked.labels),
                **label,
                **renamed,
            }
        case "multi-label":
            head = {"name": "multi-label-classification", "template": text, "labels": list(asked.labels)}
            return head | {"label_column": answer} | dict(asked.extra) | renamed
        case "regression":
            return {"name": "regression", "template": text, "value_column": answer, **asked.extra, **renamed}
        case "tagging":
            of_words = {} if asked.fields[0] == "words" else {"columns": {"words": asked.fields[0]}}
            of_tags = {} if answer == "tags" else {"tag_column": answer}
            return {"name": "token-classification", "tags": list(asked.labels), **of_tags, **of_words}
        case _:
            words = max(len(str(row[answer]).split()) for row in rows)
            tokens = min(256, max(16, -(-int(words * 1.6 + 8) // 8) * 8))
            proposal.decide("task.max_new_tokens", f"{tokens}: the longest answer has {words} words")
            target = f"{{{answer}}}" if _is_plain(answer) else "{answer}"
            if not _is_plain(answer):
                renamed = {"columns": {**columns, "answer": answer}}
            return {
                "name": "text-generation",
                "template": f"{text}\n",
                "target": target,
                "max_new_tokens": tokens,
                **renamed,
            }


def _answered_by_words(text: str, asked: Asked, family: str, proposal: Proposal) -> dict[str, Any]:
    found = infer_words(asked.labels, asked.answer)
    proposal.decide("task.labels", f"the words of the labels are {found.reason}")
    if found.guessed:
        proposal.doubts.append(
            f"the words of the labels are a guess ({found.reason}): write what they mean into the config"
        )
    named = (asked.answer or "label").replace("_", " ").strip().capitalize()
    template = f"{text}\n{named}: {{mask}}" if family == "masked-lm" else f"{text}\n{named}:"
    words = (
        {label: word.strip() for label, word in found.words.items()} if family == "masked-lm" else found.words
    )
    label = {} if asked.answer == "label" else {"label_column": asked.answer}
    normalised = {"length_normalised": True} if any(len(word.split()) > 1 for word in words.values()) else {}
    return {"name": "text-classification", "template": template, "labels": dict(words), **label, **normalised}


def _why_head(family: str) -> str:
    return (
        "the backbone has none over words"
        if family == "text-encoder"
        else f"there are more than {_MOST_WORDS} labels"
    )


def _fields(asked: Asked) -> tuple[list[str], dict[str, str]]:
    """Names of the template's fields, and the columns that they stand for where a column's name cannot stand in a template."""
    names, columns = [], {}
    for number, column in enumerate(asked.fields, 1):
        name = column if _is_plain(column) else f"text{number}"
        names.append(name)
        if name != column:
            columns[name] = column
    return names, columns


def _is_plain(column: str) -> bool:
    return not set(column) & set("{}:") and column not in ("soft", "bos", "mask") and column == column.strip()


def _method(asked: Asked, family: str, wishes: Wishes, proposal: Proposal) -> dict[str, Any]:
    if wishes.method:
        proposal.decide("method", f"{wishes.method}: you said so")
        return {"name": wishes.method}
    if family == "vision-encoder":
        proposal.decide("method", "vpt: a few trained rows in every layer of the tower")
        return {"name": "vpt"}
    if family == "vision-language":
        proposal.decide("method", "coop: trained words in the texts that images are compared with")
        return {"name": "coop"}
    if family == "causal-lm" or asked.kind == "generation":
        proposal.decide("method", "prompt-tuning: 20 virtual tokens, a few kB")
        return {"name": "prompt-tuning", "length": 20}
    proposal.decide(
        "method",
        "p-tuning-v2: 20 trained positions in every layer; `softprompt suggest` compares it with others",
    )
    return {"name": "p-tuning-v2", "length": 20}


def _recipe(
    asked: Asked, family: str, rows: Sequence[Mapping[str, Any]], proposal: Proposal
) -> dict[str, Any]:
    quick = family in ("text-encoder", "masked-lm", "vision-encoder", "vision-language")
    steps = min(
        600 if quick else 200, max(200 if quick else 100, 50 * round(_EPOCHS * 0.7 * len(rows) / 16 / 50))
    )
    proposal.decide(
        "recipe",
        f"{steps} steps of 16 rows, {steps * 16 / (0.7 * len(rows)):.0f} times over the training rows",
    )
    recipe: dict[str, Any] = {"steps": steps, "batch_size": 16}
    if asked.kind not in ("images", "tagging"):
        mean = sum(_mean_words(rows, name) for name in asked.fields)
        if mean > _LONG:
            recipe["max_tokens"] = 384
            proposal.decide(
                "recipe", f"texts have {mean:.0f} words on average: they are cut at 384 tokens, for speed"
            )
    return recipe


def _mean_words(rows: Sequence[Mapping[str, Any]], column: str) -> float:
    return statistics.fmean(len(_said(row.get(column, "")).split()) for row in rows)


def _said(value: Any) -> str:
    """A value as text; of turns what they say."""
    if isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value):
        return " ".join(str(turn.get("content", turn.get("value", ""))) for turn in value)
    return str(value)
