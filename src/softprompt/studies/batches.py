"""Which runs of a study can be trained in one batch, see `softprompt.fitting.many`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from softprompt.fitting.many import SHARED_SETTINGS
from softprompt.studies.runs import PlannedRun


def batches_of(runs: Sequence[PlannedRun], most: int) -> list[list[PlannedRun]]:
    """Batches of at most `together` runs of one method and protocol on the same rows; other runs are alone.

    In the order of the first run of each.
    """
    found: list[list[PlannedRun]] = []
    open_: dict[str, list[PlannedRun]] = {}
    for run in runs:
        key = _common(run)
        batch = None if key is None else open_.get(key)
        if batch is None or len(batch) >= most:
            batch = []
            found.append(batch)
        batch.append(run)
        if key is not None:
            open_[key] = batch
    return found


def _common(run: PlannedRun) -> str | None:
    """The settings that all runs of a batch share; None for a run that is made alone."""
    values = run.values
    recipe, data = values["recipe"], values["data"]
    protocol = run.settings().protocol
    # A trial may be given up between two steps, trackers follow one run at a time.
    if run.trial is not None or recipe["trackers"] or not protocol.together:
        return None
    common = {
        "rows": [data["train"], data.get("validation")],
        "recipe": {name: recipe[name] for name in SHARED_SETTINGS},
        "method": values["method"]["name"],
        "protocol": [protocol.name, protocol.as_dict()],
        **{key: values[key] for key in ("backbone", "task")},
    }
    if protocol.draws() is not None:  # the seed draws the rows
        common["seed"] = run.seed
    return json.dumps(common, sort_keys=True)
