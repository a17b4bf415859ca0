"""Settings that came after runs had been named without them.

Run ids, checkpoints, begun studies and files of results know a method, a task, a recipe or a backbone by all of its
fields. One that is added to it is marked, and is left out of these while it has its default:

    width: Annotated[int, LATER] = 4
    rate: Annotated[float | None, LATER] = Field(default=None, gt=0)

Runs that were written before it are then still the same runs. The default must be what was done before the field was
there, and stay so for good. A field that was never marked stays in.
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
    """The fields of a dataclass without those that came later and have their default.

    plain: all fields by name, as JSON or as they are
    """
    later = later_fields(type(value))  # type: ignore[arg-type]  # mypy thinks that a class could be unhashable
    return {
        name: item for name, item in plain.items() if name not in later or getattr(value, name) != later[name]
    }


@cache
def later_fields(kind: type) -> Mapping[str, Any]:
    """The fields of a dataclass that came later, with their defaults. Raises TypeError for one without a default."""
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
