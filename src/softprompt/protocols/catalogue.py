"""Protocols by name, as studies write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softprompt.fitting.settings import parsed
from softprompt.protocols.base import Protocol
from softprompt.protocols.base_to_new import BaseToNewProtocol
from softprompt.protocols.class_incremental import ClassIncrementalProtocol
from softprompt.protocols.domain_adaptation import DomainAdaptationProtocol
from softprompt.protocols.domain_shift import DomainShiftProtocol
from softprompt.protocols.few_shot import FewShotProtocol
from softprompt.protocols.plain import PlainProtocol
from softprompt.tasks.columns import guess

PROTOCOLS: dict[str, type[Protocol]] = {
    kind.name: kind
    for kind in (
        PlainProtocol,
        FewShotProtocol,
        DomainShiftProtocol,
        BaseToNewProtocol,
        ClassIncrementalProtocol,
        DomainAdaptationProtocol,
    )
}


def parse_protocol(values: Mapping[str, Any], place: str = "protocol") -> Protocol:
    """The protocol that {name: ..., setting: ...} describes.

    place: the key of the file that it stands under
    Raises ValueError for an unknown name or setting, naming the nearest known one, and for a value that does not fit.
    """
    settings = dict(values)
    name = settings.pop("name", None)
    if name is None:
        raise ValueError(f"{place}.name is missing; known are {sorted(PROTOCOLS)}")
    if not isinstance(name, str) or name not in PROTOCOLS:
        raise ValueError(f"{place}.name is {name!r}, which is not known{guess(str(name), sorted(PROTOCOLS))}")
    found: Protocol = parsed(PROTOCOLS[name], settings, place)
    return found
