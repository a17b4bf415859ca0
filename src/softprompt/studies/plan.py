"""The runs that can be made now, from a study and its results so far."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.fitting.settings import as_mapping
from softprompt.records.run_folders import Outcome
from softprompt.studies.config import Choices, Option, Range, Select, Study, cells
from softprompt.studies.merging import merged
from softprompt.studies.runs import Outcomes, PlannedRun, in_words, planned
from softprompt.studies.search import trials


@dataclass(frozen=True)
class Plan:
    """The runs that are known so far, finished ones included, and how many will follow from their results.

    stuck  combinations whose final runs cannot be made, in words
    """

    runs: Sequence[PlannedRun]
    later: int = 0
    stuck: Sequence[str] = ()


def plan(study: Study, outcomes: Outcomes) -> Plan:
    """Raises ValueError, naming the combination, for a run whose settings do not fit together."""
    found: dict[str, PlannedRun] = {}
    later = 0
    stuck: list[str] = []
    for cell, options in cells(study):
        part = _cell_plan(study, cell, options, outcomes)
        for run in part.runs:
            # Two combinations may come to the same run: it is made once, and stands in both.
            found.setdefault(run.id + json.dumps([run.cell, run.stage, run.seed, run.trial]), run)
        later += part.later
        stuck += part.stuck
    # The sort is stable: one backbone after the other, searches as early as the file has them.
    order = {name: i for i, name in enumerate(dict.fromkeys(_backbone(run) for run in found.values()))}
    return Plan(sorted(found.values(), key=lambda run: order[_backbone(run)]), later, stuck)


def _cell_plan(study: Study, cell: dict[str, str], options: Sequence[Option], outcomes: Outcomes) -> Plan:
    values: dict[str, Any] = dict(study.shared)
    seeds, select = study.seeds, study.select
    for option in options:
        values = merged(values, option.changes)
        seeds = seeds if option.seeds is None else option.seeds
        select = select if option.select is None else option.select
    if not select:
        return Plan([planned(values, cell, seed, "final") for seed in seeds])
    if not as_mapping(values.get("data") or {}, f"{in_words(cell)}: data").get("validation"):
        raise ValueError(f"{in_words(cell)}: select chooses on validation, and data.validation is missing")
    if study.search.by == "optuna":
        searched, remaining = trials(study.search, values, cell, select, outcomes)
    else:
        searched = [
            planned(merged(values, chosen), cell, seed, "search", chosen)
            for chosen in grid(select, in_words(cell))
            for seed in study.search.seeds
        ]
        remaining = 0
    ended = [outcomes(run.id) for run in searched]
    if remaining or any(outcome is None for outcome in ended):
        return Plan(searched, remaining + len(seeds))
    best = choose(searched, [outcome for outcome in ended if outcome is not None])
    if best is None:
        return Plan(
            searched, 0, [f"{in_words(cell)}: no setting was run to its end, so none could be chosen"]
        )
    finals = [planned(merged(values, best), cell, seed, "final", best) for seed in seeds]
    return Plan([*searched, *finals])


def choose(runs: Sequence[PlannedRun], outcomes: Sequence[Outcome]) -> Mapping[str, Any] | None:
    """The settings with the best validation metric, averaged over the search's seeds; the first of equals.

    Settings with a failed or diverged run are not chosen; None if no others are left.
    """
    scores: dict[str, list[float]] = {}
    settings: dict[str, Mapping[str, Any]] = {}
    for run, outcome in zip(runs, outcomes, strict=True):
        key = json.dumps(run.chosen, sort_keys=True)
        settings.setdefault(key, run.chosen)
        value = outcome.validation if outcome.status == "finished" else None
        # A pruned trial must not win by a lucky early evaluation.
        scores.setdefault(key, []).append(float("-inf") if value is None or value != value else value)
    means = {key: sum(found) / len(found) for key, found in scores.items()}
    best = max(means, key=means.__getitem__, default=None)
    return None if best is None or means[best] == float("-inf") else settings[best]


def grid(select: Select, place: str) -> list[dict[str, Any]]:
    """Every combination. Raises ValueError for a range, which has infinitely many values."""
    for key, choices in select.items():
        if isinstance(choices, Range):
            raise ValueError(
                f"{place}: select.{key} is a range, which needs search: {{by: optuna}}; give a list"
            )
    lists: list[Choices] = list(select.values())
    return [dict(zip(select, combination, strict=True)) for combination in itertools.product(*lists)]  # type: ignore[arg-type]


def _backbone(run: PlannedRun) -> str:
    return json.dumps(run.values["backbone"])
