"""JSON that is read back exactly as it was written."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from softprompt.files import parse_json
from softprompt.store.errors import PromptFileError


def plain(value: Any, where: str) -> Any:
    """A copy made of dictionaries, lists, strings, numbers, booleans and None, as JSON returns them.

    Tuples become lists. Numbers that JSON does not have (nan, inf) become None: an undefined metric must not keep a
    prompt from being saved.
    Raises TypeError for anything else, with its place (`where` and the keys below it).
    """
    match value:
        case None | bool():
            return value
        case str():
            return _unicode(value, where)
        case int():
            return int(value)
        case float():
            return float(value) if math.isfinite(value) else None
        case list() | tuple():
            return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(
                        f"{where} has the key {key!r}, a {type(key).__name__}; JSON has only strings as "
                        f"keys: write {str(key)!r}"
                    )
            return {_unicode(key, where): plain(item, f"{where}.{key}") for key, item in value.items()}
        case _:
            raise TypeError(
                f"{where} is a {type(value).__name__}, which JSON cannot hold; give plain dictionaries, "
                "lists, strings, numbers, booleans or None (a tensor with one element: .item())"
            )


def digest(value: Any, *, ordered: bool) -> str:
    """The sha256 digest of plain JSON. ordered: whether the order of keys counts."""
    text = json.dumps(value, sort_keys=not ordered, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def dumps(value: Any) -> bytes:
    """JSON in UTF-8, indented for people to read."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parse_object(content: bytes, name: str, *, ours: bool = False) -> dict[str, Any]:
    """The JSON object that the file `name` holds; raises PromptFileError if it holds none.

    ours: written by this library, so that a byte order mark is damage. A key that stands twice always is: two programs
    would read two things in it
    """
    try:
        value = parse_json(content if ours else content.removeprefix(codecs.BOM_UTF8))
    # ValueError: no JSON, no UTF-8, or an integer with thousands of digits; RecursionError: thousands of brackets
    except (ValueError, RecursionError) as error:
        raise PromptFileError(
            f"{name} is not readable JSON ({error}): it is damaged, copy it again"
        ) from error
    if not isinstance(value, dict):
        raise PromptFileError(
            f"{name} holds a JSON {type(value).__name__} where an object {{...}} is expected"
        )
    return value


def _unicode(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where} is {text!r}, half of a surrogate pair, which no UTF-8 file can hold"
        ) from error
    return str(text)
