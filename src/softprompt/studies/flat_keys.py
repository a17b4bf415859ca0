"""Protocols as runs are written on disk: by keys beside `data` and `recipe`, as study files had them before `protocol`.

A run's id is a hash of what is written, so runs of the older protocols keep these keys permanently. Studies are
written with `protocol: {name: ..., setting: ...}`; the keys in a study's file are read for one more version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.fitting.settings import as_mapping
from softprompt.protocols.base import Protocol

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "few-shot": {"shots": "shots"},
    "class-incremental": {
        "class_tasks": "tasks",
        "class_logits": "logits",
        "class_order": "order",
        "class_answers": "answers",
        "rehearsal": "rehearsal",
    },
    "base-to-new": {"shots": "shots"},
    "domain-shift": {"shots": "shots", "domains": "domains"},
}
"""By name of the protocol: key -> the setting that it says."""

_HALVES = "base_to_new"  # true: says the protocol itself
_USUAL = {
    "class_logits": "present",
    "class_order": "seed",
    "class_answers": "all",
}  # say nothing without class_tasks

FLAT_KEYS = (*dict.fromkeys(key for keys in SETTINGS.values() for key in keys), _HALVES)


def as_flat(protocol: Protocol) -> dict[str, Any]:
    """The flat keys of this protocol; `protocol` itself for a protocol without such keys and for settings that came later."""
    values = protocol.as_dict()
    keys = SETTINGS.get(protocol.name)
    if keys is None:
        return (
            {} if protocol.name == "plain" and not values else {"protocol": {"name": protocol.name, **values}}
        )
    found: dict[str, Any] = {key: values.pop(name) for key, name in keys.items() if name in values}
    if protocol.name == "base-to-new":
        found[_HALVES] = True
    return found | ({"protocol": values} if values else {})


def from_flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The run with `protocol` in place of the flat keys that describe it.

    Raises ValueError for keys of two protocols, and for keys beside a protocol of another name.
    """
    plain = {key: value for key, value in values.items() if key not in FLAT_KEYS}
    given = {key: values[key] for key in FLAT_KEYS if key in values and not _says_nothing(key, values[key])}
    if "class_tasks" not in given:
        given = {key: value for key, value in given.items() if _USUAL.get(key) != value}
    if not given:
        return plain
    name = _name(given)
    settings = {SETTINGS[name][key]: value for key, value in given.items() if key != _HALVES}
    beside = described(plain.get("protocol") or {})
    if beside.get("name", name) != name:
        raise ValueError(
            f"{', '.join(given)} stand beside protocol: {beside['name']}, and say protocol: {name}: take the keys out and "
            "write their settings under protocol"
        )
    return {**plain, "protocol": {"name": name, **settings, **beside}}


def described(protocol: Any) -> dict[str, Any]:
    """A study's protocol as a mapping, also if it is only a name. Raises ValueError for anything else."""
    return {"name": protocol} if isinstance(protocol, str) else as_mapping(protocol, "protocol")


def _says_nothing(key: str, value: Any) -> bool:
    """Whether a key has the same meaning as a missing one."""
    if key == _HALVES and not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected true or false")
    return value is None or (key == _HALVES and value is False) or (key == "domains" and value == {})


def _name(given: Mapping[str, Any]) -> str:
    """The name of the protocol that all of these keys belong to."""
    if _HALVES in given:
        name, leading = "base-to-new", _HALVES
    else:
        leading = next((key for key in ("class_tasks", "domains", "shots") if key in given), "")
        names = {"class_tasks": "class-incremental", "domains": "domain-shift", "shots": "few-shot"}
        name = names.get(leading, "")
    if not name:
        raise ValueError(
            f"{next(iter(given))} is there without class_tasks: it is a setting of class-incremental"
        )
    if others := [key for key in given if key not in SETTINGS[name] and key != leading]:
        raise ValueError(
            f"{leading} is there together with {', '.join(others)}, which the protocol {name} does not have"
        )
    return name


def flat_name(text: str, name: str) -> str:
    """An error about `protocol`, worded with the flat keys that the file has."""
    for key, setting in SETTINGS.get(name, {}).items():
        text = text.replace(f"protocol.{setting}", key)
    return text


def new_words(key: str) -> Iterator[str]:
    """The replacement of a flat key: a protocol's name and the setting."""
    if key == _HALVES:
        yield "protocol: {name: base-to-new}"
    for name, keys in SETTINGS.items():
        if key in keys:
            yield f"protocol: {{name: {name}, {keys[key]}: ...}}"


def flat_keys_in(values: Any) -> list[str]:
    """The keys of older versions in a study, wherever they stand."""
    found: dict[str, None] = {}

    def look(part: Any) -> None:
        for key, value in _items(part):
            first = str(key).partition(".")[0]
            if first in FLAT_KEYS:
                found[first] = None
            elif key in ("select", "full"):
                look(value)
            elif key == "runs":
                for _, option in _items(value):
                    look(option)
            elif key == "axes":
                for axis, options in _items(value):
                    look({axis: None})
                    for _, option in _items(options):
                        look(option)

    look(values)
    return list(found)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()


def about_older_keys(path: Path, keys: Sequence[str]) -> str:
    """A sentence about the flat keys in a study's file, with what to write now."""
    forms = "; ".join(f"{key} is now {' or '.join(new_words(key))}" for key in keys)
    return (
        f"{path}: {forms}. Within an axis, an option or select a setting is `protocol.SETTING`. Runs keep their ids; the next "
        "version does not read these keys in a study's file"
    )
