"""Splits for learning from k rows per class, which can be repeated and shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from softprompt.data import Row, few_shot
from softprompt.records import read_object, rows_digest, write_object
from softprompt.tasks import (
    ImageClassification,
    ImageTextClassification,
    SequenceClassification,
    TextClassification,
)
from softprompt.tasks.base import Task

SHOTS = (4, 16, 32)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class FewShotSplit:
    """Row numbers in the data set, from 0: `shots` per class for training, and as many others for validation."""

    shots: int
    seed: int
    train: tuple[int, ...]
    validation: tuple[int, ...]


def few_shot_splits(
    rows: Sequence[Row],
    task: Task,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    *,
    file: str | Path | None = None,
) -> list[FewShotSplit]:
    """Splits for every k and seed, k by k; the same for the same rows and seed.

    No row to choose by shows what a training row shows, even where the data has it twice. With one seed the training rows of
    a smaller k are among those of a larger one. file: JSON; splits that it holds are taken from there, new ones are added.
    Raises ValueError for a task without classes, a class of fewer than 2 k rows, and a file made for other rows.
    """
    labelled, shown = _labelled(rows, task), _shown(rows, task)
    if file is None:
        return [_split(k, seed, _draw(labelled, shown, k, seed)) for k in shots for seed in seeds]
    path, digest = Path(file), rows_digest(rows)
    known = read_object(path)
    if known and known.get("rows") != digest:
        raise ValueError(
            f"{path} holds splits of other rows: row numbers mean nothing here; load the data it was made for, or name "
            "another file"
        )
    kept: dict[str, dict[str, list[int]]] = dict(known.get("splits", {}))
    for k in shots:
        for seed in seeds:
            if f"{k}/{seed}" not in kept:
                kept[f"{k}/{seed}"] = _draw(labelled, shown, k, seed)
    if {"rows": digest, "splits": kept} != known:
        write_object(path, {"rows": digest, "splits": kept})
    return [_split(k, seed, kept[f"{k}/{seed}"]) for k in shots for seed in seeds]


def draw_split(rows: Sequence[Row], task: Task, shots: int, seed: int) -> FewShotSplit:
    """The split of `few_shot_splits` for this k and seed. Raises the same errors."""
    return _split(shots, seed, _draw(_labelled(rows, task), _shown(rows, task), shots, seed))


def _labelled(rows: Sequence[Row], task: Task) -> list[dict[str, Any]]:
    if not isinstance(
        task, TextClassification | SequenceClassification | ImageClassification | ImageTextClassification
    ):
        raise ValueError(
            f"{task.name} has no classes to draw rows from: few-shot splits are for classification"
        )
    return [{"row": i, "label": task.read_label(row)} for i, row in enumerate(rows)]


def _split(shots: int, seed: int, ids: Mapping[str, Sequence[int]]) -> FewShotSplit:
    return FewShotSplit(shots, seed, tuple(ids["train"]), tuple(ids["validation"]))


def _shown(rows: Sequence[Row], task: Task) -> Callable[[int], str]:
    """The digest of a row's content without its label. Images count by their bytes, not by their file."""
    columns: Mapping[str, str] = getattr(task, "columns", {})

    def content(value: Any) -> Any:
        return value["bytes"] if isinstance(value, Mapping) and value.get("bytes") is not None else value

    @cache
    def digest(place: int) -> str:
        names = [columns.get(name, name) for name in task.fields]
        return rows_digest([{name: content(rows[place].get(name)) for name in names}])

    return digest


def _draw(
    labelled: Sequence[Mapping[str, Any]], shown: Callable[[int], str], k: int, seed: int
) -> dict[str, list[int]]:
    """Rows of both halves. No content is in both, however often it occurs in the data."""
    train = [row["row"] for row in few_shot(labelled, k, "label", seed)]
    taken, seen = set(train), {shown(i) for i in train}
    validation = _others([row for row in labelled if row["row"] not in taken], labelled, k, seed)
    if not seen.isdisjoint(map(shown, validation)):
        # Only now: data without doubles, and draws that met none, keep the halves that they had.
        unseen = [row for row in labelled if shown(row["row"]) not in seen]
        validation = _others(unseen, labelled, k, seed)
    return {"train": train, "validation": validation}


def _others(
    rest: Sequence[Mapping[str, Any]], labelled: Sequence[Mapping[str, Any]], k: int, seed: int
) -> list[int]:
    missing = {row["label"] for row in labelled} - {row["label"] for row in rest}
    if missing:
        raise ValueError(f"k={k}: no row is left for validation for the labels {sorted(missing)}; lower k")
    return [row["row"] for row in few_shot(rest, k, "label", seed)]
