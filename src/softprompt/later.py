"""Settings that were added after runs had got ids without them.

Run ids, checkpoints, begun studies and files of results identify a method, a task, a recipe or a backbone by all of its
fields. A field that is added later is marked, and is left out of the id while it has its default:

    width: Annotated[int, LATER] = 4
    rate: Annotated[float | None, LATER] = Field(default=None, gt=0)

So earlier runs keep their ids. The default must be the behaviour before the field existed, and must never change. A field
that was never marked is always part of the id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from functools import cache
from typing import Any, Final, get_type_hints

from pydantic.fields import FieldInfo


class _Later:
    def __repr__(self) -> str:
        return "LATER"


LATER: Final = _Later()
"""Marks a field, in its annotation."""


def without_later(value: Any, plain: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, without those that were added later and have their default.

    plain: all fields by name, as JSON or as they are
    """
    later = later_fields(type(value))  # type: ignore[arg-type]  # mypy thinks that a class could be unhashable
    return {
        name: item for name, item in plain.items() if name not in later or getattr(value, name) != later[name]
    }


@cache
def later_fields(kind: type) -> Mapping[str, Any]:
    """The fields of a dataclass that were added later, with their defaults. Raises TypeError for one without a default."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: _default(kind, field)
        for field in fields(kind)
        if LATER in getattr(hints[field.name], "__metadata__", ())
    }


def _default(kind: type, field: Field[Any]) -> Any:
    default = field.default
    if isinstance(default, FieldInfo):  # pydantic's own Field(...)
        if not default.is_required():
            return default.get_default(call_default_factory=True)
    elif default is not MISSING:
        return default
    elif field.default_factory is not MISSING:
        return field.default_factory()
    raise TypeError(
        f"{kind.__name__}.{field.name} came later and has no default: nothing could stand for it in older runs"
    )
