"""Ensembles of the prompts of a line's seeds: each is evaluated once, when all have finished. DIR/ensembles has the results."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.files import read_text, write_text
from softprompt.protocols.ensembling import RULES
from softprompt.records.run_folders import disk_is_full
from softprompt.studies.environment import free_kept_memory
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Plan
from softprompt.studies.runs import PlannedRun

Judge = Callable[[Sequence[PlannedRun]], Mapping[str, Any]]
"""Evaluates the prompts of finished runs together on their test rows."""


def members_of(plan: Plan, folder: StudyFolder) -> list[list[PlannedRun]]:
    """The final runs of each combination with two or more seeds, if all of them have finished."""
    groups: dict[str, list[PlannedRun]] = defaultdict(list)
    for run in plan.runs:
        if run.stage == "final" and run.values["data"].get("test"):
            groups[json.dumps(run.cell)].append(run)
    return [runs for runs in groups.values() if len(runs) > 1 and all(_learned(run, folder) for run in runs)]


def make_ensembles(plan: Plan, folder: StudyFolder, judge: Judge, note: Callable[[str], None]) -> None:
    """Evaluate each ensemble that is not recorded yet. One that cannot be built is logged and left out."""
    for members in members_of(plan, folder):
        name = _name(members)
        with folder.claim(name, wait=True):  # another process may be at it
            if recorded(members, folder) is not None:
                continue
            try:
                found = judge(members)
            except Exception as error:
                if disk_is_full(error):
                    raise
                free_kept_memory()
                note(f"no ensemble of {', '.join(run.id for run in members)}: {error}")
                continue
            facts = {"members": [run.id for run in members], **found}
            place = _file(members, folder)
            place.parent.mkdir(exist_ok=True)
            write_text(place, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def recorded(members: Sequence[PlannedRun], folder: StudyFolder) -> dict[str, Any] | None:
    """The recorded result of these members: metric, each of RULES, mean, best, and the members; None if there is none yet."""
    try:
        facts = json.loads(read_text(_file(members, folder)))
    except (FileNotFoundError, ValueError):
        return None
    whole = isinstance(facts, dict) and {"metric", "mean", "best", *RULES} <= facts.keys()
    return facts if whole else None


def _learned(run: PlannedRun, folder: StudyFolder) -> bool:
    outcome = folder.outcome(run.id)
    return outcome is not None and outcome.status == "finished" and bool(outcome.facts.get("steps_made"))


def _name(members: Sequence[PlannedRun]) -> str:
    # An id has the hash of all that its run's result depends on.
    ids = "\n".join(run.id for run in members)
    return f"ensemble-{hashlib.sha256(ids.encode()).hexdigest()[:12]}"


def _file(members: Sequence[PlannedRun], folder: StudyFolder) -> Path:
    return folder.path / "ensembles" / f"{_name(members)}.json"
