"""A run of a study: its settings and its name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from softprompt.fitting.settings import SettingError
from softprompt.records.run_folders import Outcome, run_hash
from softprompt.studies.run_settings import RunSettings, parse_run


@dataclass(frozen=True)
class PlannedRun:
    """A run with all its settings.

    id      readable name and a hash of all that the result depends on
    values  the run in plain values, see `RunSettings.as_dict`
    cell    label by axis
    chosen  settings that are (stage "search") tried or (stage "final") chosen on validation
    trial   number of an Optuna trial
    """

    id: str
    values: Mapping[str, Any]
    cell: Mapping[str, str]
    seed: int
    stage: Literal["search", "final"]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    trial: int | None = None

    def settings(self) -> RunSettings:
        """The settings that the run is made with."""
        return _parsed(json.dumps(self.values))


Outcomes = Callable[[str], Outcome | None]


def planned(
    values: Mapping[str, Any],
    cell: Mapping[str, str],
    seed: int,
    stage: Literal["search", "final"],
    chosen: Mapping[str, Any] | None = None,
    trial: int | None = None,
) -> PlannedRun:
    """The run of these values with this seed. Raises ValueError, naming the combination, if they do not fit."""
    full = {**values, "seed": seed}
    try:
        text = _resolved(json.dumps(full, default=str), stage == "search")
    except ValueError as error:
        key = error.key if isinstance(error, SettingError) else ""
        raise SettingError(f"{in_words(cell)}: {error}", key) from error
    resolved = json.loads(text)
    labels = [
        label if re.search("[A-Za-z]", label) else f"{axis.split('.')[-1]}={label}"
        for axis, label in cell.items()
    ]
    words = [*labels, *(f"{key.split('.')[-1]}={value}" for key, value in (chosen or {}).items())]
    name = "-".join([*(["search"] if stage == "search" else []), *words, f"seed{seed}"])
    return PlannedRun(
        f"{_slug(name)}-{run_hash(resolved)}", resolved, dict(cell), seed, stage, dict(chosen or {}), trial
    )


@cache
def _parsed(text: str) -> RunSettings:
    return parse_run(json.loads(text))


@cache
def _resolved(text: str, for_choosing: bool) -> str:
    """A run's values with every default filled in, as JSON; for_choosing: without its test data."""
    settings = _parsed(text)
    return json.dumps((settings.for_choosing() if for_choosing else settings).as_dict())


def in_words(cell: Mapping[str, str]) -> str:
    """The combination of the axes that a run belongs to."""
    return ", ".join(f"{axis} {label}" for axis, label in cell.items()) or "the study"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.")[:80]
