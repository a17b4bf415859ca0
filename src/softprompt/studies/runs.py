"""A run of a study: its settings, its name, how it ended."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

from softprompt.studies.run_settings import RunSettings, parse_run

Status = Literal["finished", "pruned", "diverged", "failed"]

# What a run's result does not depend on, or only in its last bits.
_FREE = {
    "backbone": ("device",),
    "recipe": ("trackers", "checkpoint_every", "gradient_checkpointing"),
}


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `facts` is what its folder says."""

    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def validation(self) -> float | None:
        """The main metric on validation rows; None: it has none."""
        metrics = self.facts.get("metrics", {}).get("validation", {})
        value = metrics.get(self.facts.get("main_metric"))
        return None if value is None else float(value)


@dataclass(frozen=True)
class PlannedRun:
    """A run with all its settings.

    id      readable name and a hash of all that the result depends on
    values  the run in plain values, see `RunSettings`
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
        return parse_run(self.values)


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
    if stage == "search":  # what is chosen by validation must not see the test data
        full.pop("domains", None)
        full["data"] = {name: source for name, source in full.get("data", {}).items() if name != "test"}
    try:
        text = _resolved(json.dumps(full, default=str))
    except ValueError as error:
        raise ValueError(f"{in_words(cell)}: {error}") from error
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


def run_hash(values: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the sha256 of all that a run's result depends on."""
    kept = {
        key: {k: v for k, v in value.items() if k not in _FREE[key]} if key in _FREE else value
        for key, value in values.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _resolved(text: str) -> str:
    """A run's values with every default filled in, as JSON."""
    return json.dumps(parse_run(json.loads(text)).as_dict())


def in_words(cell: Mapping[str, str]) -> str:
    """The combination of the axes that a run belongs to."""
    return ", ".join(f"{axis} {label}" for axis, label in cell.items()) or "the study"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.=]+", "-", name).strip("-.")[:80]
