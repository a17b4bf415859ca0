"""Plain values, as YAML and JSON have them, become settings; an error names the key that is wrong.

A place is the dotted key of what is parsed, as in "recipe.steps".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from pydantic import TypeAdapter, ValidationError

from softprompt.errors import explain, shown
from softprompt.tasks.columns import guess


class SettingError(ValueError):
    """A setting that is unknown or does not fit. key: where it stands, as in "recipe.steps"."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def by_name(known: Mapping[str, type], values: Mapping[str, Any], place: str) -> Any:
    """Return the settings of the class that `name` names. Raises SettingError where they do not fit it."""
    name = values.get("name")
    if name is None:
        raise SettingError(f"{place}.name is missing; known are {sorted(known)}", place)
    if not isinstance(name, str) or name not in known:
        told = guess(name, sorted(known)) if isinstance(name, str) else f"; known are {sorted(known)}"
        raise SettingError(f"{place}.name is {shown(name)}, which is not known{told}", f"{place}.name")
    settings = {key: value for key, value in values.items() if key != "name"}
    check_keys(settings, field_names(known[name]), place)
    return parsed(known[name], settings, place)


def parsed(kind: type, values: Mapping[str, Any], place: str) -> Any:
    """Return the settings as an object of this class. Raises SettingError for an unknown key and a wrong value."""
    check_keys(values, field_names(kind), place)
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = ".".join(map(str, (place, *error.errors(include_url=False)[0]["loc"])))
        raise SettingError(explain(error, place) + _quotes(error), first) from error


def _quotes(error: ValidationError) -> str:
    """What to do about a word that YAML did not read as text."""
    for item in error.errors(include_url=False):
        found = item.get("input")
        if "string" in item["type"] and isinstance(found, bool | int | float | date):
            kind = (
                "yes, no, on, off, true and false as truth values"
                if isinstance(found, bool)
                else "it as a number"
            )
            kind = "it as a date" if isinstance(found, date) else kind
            return f"; YAML reads {kind}: put quotes around a text"
    return ""


def field_names(kind: type) -> list[str]:
    """Return the names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(kind)]


def check_keys(values: Mapping[str, Any], known: Sequence[str], place: str) -> None:
    """Raise SettingError for an unknown key, with the nearest known one."""
    for key in values:
        if key not in known:
            where = f"{place}.{key}" if place else key
            raise SettingError(f"unknown key {shown(where)}{guess(str(key), known)}", str(where))


def as_mapping(value: Any, place: str) -> dict[str, Any]:
    """Return the value. Raises SettingError if it is not a mapping."""
    if not isinstance(value, dict):
        raise SettingError(f"{place} is {shown(value)}, expected keys and values", place)
    return value
