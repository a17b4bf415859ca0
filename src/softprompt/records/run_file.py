"""Finished runs by name in one JSON file, so that a killed study resumes. One process writes a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softprompt.records.objects import Record, differing, read_object, write_object


def once(
    file: str | Path | None, key: str, settings: Mapping[str, Any], work: Callable[[], Record]
) -> Record:
    """The result of `work`: read from the file if it has the run `key`, otherwise computed and written there; None: no file.

    settings: plain JSON, everything that the result depends on.
    Raises ValueError for a file that holds no runs, or a run of that name with other settings.
    """
    if file is None:
        return work()
    place = Path(file)
    if found := read_object(place).get(key):
        if others := differing(settings, found["settings"]):
            raise ValueError(
                f"{place} has a run {key!r} with other settings ({', '.join(others)}): write to another file, or delete "
                "this one to run everything again"
            )
        return dict(found["record"])
    record = json.loads(json.dumps(work()))
    plain = json.loads(json.dumps(settings))
    write_object(place, read_object(place) | {key: {"settings": plain, "record": record}})
    return dict(record)
