"""Learning from k rows per class: splits that can be repeated and shared, and runs over k and seeds.

The setting of DePT's few-shot table (Shi, Lipani, ICLR 2024, arXiv 2309.05173, section 3.4): k = 4, 16, 32, with and
without a source task's prompt as the start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.data import Row, Rows, few_shot
from softprompt.fitting.one import fit
from softprompt.prompts import Method
from softprompt.protocols._records import (
    Record,
    folder_digest,
    once,
    read_object,
    rows_digest,
    rows_of,
    write_object,
)
from softprompt.store.identity import identity_of, settings_of
from softprompt.tasks import (
    ImageClassification,
    ImageTextClassification,
    SequenceClassification,
    TextClassification,
)
from softprompt.tasks.base import Task
from softprompt.training.recipe import Recipe

SHOTS = (4, 16, 32)
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class FewShotSplit:
    """Places of the rows in the data set, from 0: `shots` per class to train on, as many others to choose by."""

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

    With one seed the training rows of a smaller k are among those of a larger one. file: JSON; splits that it holds are
    taken from there, new ones are added.
    Raises ValueError for a task without classes, a class of fewer than 2 k rows, and a file made for other rows.
    """
    path = None if file is None else Path(file)
    if not isinstance(
        task, TextClassification | SequenceClassification | ImageClassification | ImageTextClassification
    ):
        raise ValueError(
            f"{task.name} has no classes to draw rows of: few-shot splits are for classification"
        )
    labelled = [{"row": i, "label": task.read_label(row)} for i, row in enumerate(rows)]
    digest = rows_digest(rows)
    known = {} if path is None else read_object(path)
    if known and known.get("rows") != digest:
        raise ValueError(
            f"{path} holds splits of other rows: row numbers mean nothing here; load the data it was made for, or name "
            "another file"
        )
    kept: dict[str, dict[str, list[int]]] = dict(known.get("splits", {}))
    for k in shots:
        for seed in seeds:
            if f"{k}/{seed}" not in kept:
                kept[f"{k}/{seed}"] = _draw(labelled, k, seed)
    if path is not None and {"rows": digest, "splits": kept} != known:
        write_object(path, {"rows": digest, "splits": kept})
    found = [(k, seed, kept[f"{k}/{seed}"]) for k in shots for seed in seeds]
    return [FewShotSplit(k, seed, tuple(ids["train"]), tuple(ids["validation"])) for k, seed, ids in found]


def few_shot_runs(
    backbone: Backbone,
    task: Task,
    method: Method,
    train: Rows,
    test: Rows,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    source: str | Path | None = None,
    recipes: Sequence[Recipe] = (Recipe(),),
    validation: Rows | None = None,
    splits: str | Path | None = None,
    file: str | Path | None = None,
) -> list[Record]:
    """Train on k rows per class for every k and seed, choose on validation rows, read the test rows once per run.

    train       the rows that splits are drawn of; a name with splits gives its "train" split, `test` its "test" split
    source      folder of a prompt to start from: sets the method's init="prompt"
    recipes     how to train; of several the one with the best validation metric is tested. The run's seed replaces theirs
    validation  rows to choose by; None: k others per class, drawn with the training rows
    splits      JSON file of `few_shot_splits`
    file        JSON file of finished runs, which are not run again

    Returns a flat record per k and seed: method, shots, seed, source, metric (the main one), validation, test, majority
    (of the test rows), test_* (every number of the test metrics), recipe (which one), learning_rate,
    trained_parameters, best_step, seconds.
    Raises what `few_shot_splits` and `fit` do, and ValueError for a source with a method that has no init_prompt, or a file
    with the same runs under other settings.
    """
    if not recipes:
        raise ValueError("no recipe was given")
    rows, test_rows = rows_of(train, "train"), rows_of(test, "test")
    given = None if validation is None else rows_of(validation, "validation")
    method = method if source is None else started_from(method, source)
    settings: dict[str, Any] = {
        "backbone": settings_of(identity_of(backbone)),
        "task": {"name": task.name, **settings_of(task)},
        "method": {"name": method.name, **settings_of(method)},
        "recipes": [settings_of(recipe) for recipe in recipes],
        "test rows": rows_digest(test_rows),
        "validation rows": None if given is None else rows_digest(given),
        "source": None if source is None else folder_digest(Path(source)),
    }
    records = []
    for split in few_shot_splits(rows, task, shots, seeds, file=splits):
        chosen = [rows[i] for i in split.train]
        held_out = given if given is not None else [rows[i] for i in split.validation]

        def work(split: FewShotSplit = split, chosen: Any = chosen, held_out: Any = held_out) -> Record:
            found = _run(backbone, task, method, chosen, held_out, test_rows, recipes, split.seed)
            about = {"method": method.name, "shots": split.shots, "seed": split.seed}
            return about | {"source": None if source is None else str(source)} | found

        used = settings | {"rows": rows_digest([*chosen, *held_out])}
        key = "/".join(
            [method.name, "scratch" if source is None else str(source), str(split.shots), str(split.seed)]
        )
        records.append(once(None if file is None else Path(file), key, used, work))
    return records


def started_from(method: Method, folder: str | Path) -> Method:
    """The same method, starting from a saved prompt. Raises ValueError if it cannot."""
    known = {field.name for field in fields(method)}  # type: ignore[arg-type]  # a method is a dataclass
    if "init_prompt" not in known:
        raise ValueError(f"{method.name} cannot start from a prompt: it has no setting init_prompt")
    changes: dict[str, Any] = {"init": "prompt", "init_prompt": Path(folder)}
    if "init_text" in known:
        changes["init_text"] = None
    return type(method)(**settings_of(method) | changes)


def _run(
    backbone: Backbone,
    task: Task,
    method: Method,
    train: Sequence[Row],
    validation: Sequence[Row],
    test: Sequence[Row],
    recipes: Sequence[Recipe],
    seed: int,
) -> Record:
    """Fit by every recipe, test the one that validation prefers, the first of equals."""
    tuned = [
        fit(backbone, task, method, train, validation, recipe=replace(recipe, seed=seed), progress=False)
        for recipe in recipes
    ]
    scores = [float(prompt.metrics["validation"][task.main_metric]) for prompt in tuned]
    best = max(range(len(tuned)), key=scores.__getitem__)
    metrics, how = tuned[best].evaluate(test), tuned[best].recipe
    return {
        "metric": task.main_metric,
        "validation": scores[best],
        "test": metrics[task.main_metric],
        "majority": metrics.get("majority_accuracy"),
        **{f"test_{name}": value for name, value in metrics.items() if isinstance(value, int | float)},
        "recipe": best,
        **{name: how.get(name) for name in ("learning_rate", "trained_parameters", "best_step", "seconds")},
    }


def _draw(labelled: Sequence[Mapping[str, Any]], k: int, seed: int) -> dict[str, list[int]]:
    train = [row["row"] for row in few_shot(labelled, k, "label", seed)]
    rest = [row for row in labelled if row["row"] not in set(train)]
    missing = {row["label"] for row in labelled} - {row["label"] for row in rest}
    if missing:
        raise ValueError(f"k={k}: no row is left to choose by for the labels {sorted(missing)}; lower k")
    return {"train": train, "validation": [row["row"] for row in few_shot(rest, k, "label", seed)]}
