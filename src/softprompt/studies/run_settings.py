"""The settings that one run of a study depends on, and how they are read from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from softprompt.fitting.run_config import RunConfig, parse_config
from softprompt.protocols.base import Protocol
from softprompt.protocols.catalogue import parse_protocol
from softprompt.protocols.plain import PlainProtocol
from softprompt.studies.flat_keys import FLAT_KEYS, as_flat, described, flat_name, from_flat

RUN_KEYS = ("backbone", "task", "method", "data", "recipe", "protocol")
"""The keys of a study that describe its runs. FLAT_KEYS are read too."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that one run depends on: the way of tuning with its data, and how it is measured."""

    config: RunConfig
    protocol: Protocol = dataclasses.field(default_factory=PlainProtocol)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `parse_run` reads back as the same run."""
        return self.config.as_dict() | as_flat(self.protocol)

    def for_choosing(self) -> RunSettings:
        """The run that chooses settings: it never sees test data."""
        config = dataclasses.replace(self.config, data=dataclasses.replace(self.config.data, test=None))
        return RunSettings(config, self.protocol.for_choosing())


def parse_run(values: Mapping[str, Any]) -> RunSettings:
    """The run that these values describe, with the keys of a study or of a run's folder.

    Raises ValueError as `parse_config` does, and for a protocol that is unknown, misses a setting or does not fit the run.
    """
    plain = from_flat(values)
    protocol = _protocol(plain.pop("protocol", None), values)
    config = parse_config(plain)
    protocol.check(config)
    return RunSettings(config, protocol)


def _protocol(given: Any, values: Mapping[str, Any]) -> Protocol:
    if given is None:
        return PlainProtocol()
    settings = described(given)
    try:
        return parse_protocol(settings)
    except ValueError as error:
        if any(key in values for key in FLAT_KEYS):
            raise ValueError(flat_name(str(error), settings["name"])) from error
        raise


def flag(values: Mapping[str, Any], key: str, usual: bool) -> bool:
    """The truth value of a key, `usual` where it is missing. Raises ValueError for anything else."""
    value = values.get(key, usual)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected true or false")
    return value


def count(value: Any, key: str, what: str) -> int | None:
    """The whole number above 0 that `value` is, or None. Raises ValueError, told as "a whole number {what}"."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{key} is {value!r}, expected a whole number {what}, 1 or more")
    return value
