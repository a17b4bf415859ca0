"""Changes merged into the settings of runs: the options of an axis, and the full variant of a study."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softprompt.fitting.run_config import written_out
from softprompt.fitting.settings import as_mapping
from softprompt.studies.flat_keys import described


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with changes merged in, key by key; a change is a "dotted.key" or nested.

    A new task, method, protocol or data source replaces the old one as a whole, and so does any value that is not a mapping.
    """
    result = _written_out(values)
    for dotted, value in changes.items():
        key, _, rest = str(dotted).partition(".")
        old = result.get(key)
        if rest:
            result[key] = merged(old if isinstance(old, Mapping) else {}, {rest: value})
            if key == "data":
                result = _written_out(result)
            continue
        value = _written_out({key: value})[key]
        is_new = isinstance(value, Mapping) and key != "backbone" and ("name" in value or "source" in value)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not is_new:
            value = merged(old, value)
        result[key] = value
    return result


def _written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms in full, those of a run and of its protocol."""
    full = written_out(values)
    if isinstance(full.get("protocol"), str):
        full["protocol"] = described(full["protocol"])
    return full


def with_variant(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A study with its key `full` merged in."""
    # The names below these keys are dotted themselves: an axis, a named run, a setting is replaced as a whole.
    named = {
        key: {**(values.get(key) or {}), **as_mapping(changes[key], f"full.{key}")}
        for key in ("axes", "runs", "select")
        if key in changes
    }
    return merged(values, {key: value for key, value in changes.items() if key not in named}) | named
