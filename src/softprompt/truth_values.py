"""A truth value is not a number: `steps: true`, or yes or on in YAML, is a slip, and pydantic would read it as 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache, partial
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import ArgsKwargs, core_schema


def numbers_apart(kind: type, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
    """The schema of a pydantic dataclass that refuses a truth value where a number is expected.

    A class, and with it all that are made from it, has it by `__get_pydantic_core_schema__`, a classmethod of this.
    """
    return core_schema.no_info_before_validator_function(partial(_checked, kind), handler(source))


def _checked(kind: type, given: Any) -> Any:
    names = [field.name for field in fields(kind)]
    if isinstance(given, ArgsKwargs):
        values = {**dict(zip(names, given.args, strict=False)), **(given.kwargs or {})}
    else:
        values = dict(given) if isinstance(given, Mapping) else {}
    hints = _hints(kind)
    for name, value in values.items():
        if name in names and _has_truth_value(hints[name], value):
            raise ValueError(
                f"{name} is {value}, expected a number (YAML reads yes, no, on and off as truth values)"
            )
    return given


@cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _has_truth_value(hint: Any, value: Any) -> bool:
    """Whether a truth value stands in `value` where `hint` allows numbers and no truth value."""
    kinds = _alternatives(hint)
    if isinstance(value, bool):
        return bool not in kinds and any(
            kind in (int, float)
            or (get_origin(kind) is Literal and any(type(one) is int for one in get_args(kind)))
            for kind in kinds
        )
    if isinstance(value, Mapping):
        inner = [get_args(kind)[1] for kind in kinds if _is_a(kind, Mapping) and len(get_args(kind)) == 2]
        return any(_has_truth_value(one, item) for one in inner for item in value.values())
    if isinstance(value, list | tuple):
        inner = [one for kind in kinds if _is_a(kind, Sequence) for one in get_args(kind)[:1]]
        return any(_has_truth_value(one, item) for one in inner for item in value)
    return False


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) is Annotated:
        return _alternatives(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return [kind for one in get_args(hint) for kind in _alternatives(one)]
    return [hint]


def _is_a(kind: Any, base: type) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, base)
