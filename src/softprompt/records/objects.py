"""JSON objects in files, and a check that a file belongs to the same work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softprompt.files import parse_json, read_text, write_text

Record = dict[str, Any]
"""The result of a run, as plain JSON."""


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is no file. Raises ValueError if the file holds anything else."""
    if not file.exists():
        return {}
    try:
        value = parse_json(read_text(file))
    except ValueError as error:
        raise ValueError(f"{file} is not readable JSON ({error}): delete it or name another file") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a JSON {type(value).__name__}, expected an object: name another file")
    return value


def write_object(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def differing(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of the wanted settings that differ from those found; both are compared as JSON."""
    plain = json.loads(json.dumps(wanted))
    return [name for name in plain if plain[name] != found.get(name)]
