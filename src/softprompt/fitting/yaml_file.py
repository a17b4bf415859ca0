"""YAML as people write it by hand: whatever would silently be lost or misread is an error that names its line."""

from __future__ import annotations

import codecs
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from softprompt.files import JSON_LIMIT, read_bytes

_LONGEST = 1_000_000  # characters of a file
_DEEPEST = 50  # lists and mappings in each other
_MOST = 200_000  # values with every alias written out
_PLAIN = (str, int, float, date, type(None))  # a datetime is a date, a bool an int


@dataclass(frozen=True)
class Document:
    """What a YAML file says.

    lines: path of keys -> the line that it stands in, from 1
    """

    values: Any
    lines: Mapping[tuple[str, ...], int] = field(default_factory=dict, repr=False)

    def line(self, key: str) -> int | None:
        """The line of a dotted key, or of the nearest key above it that the file has."""
        parts = tuple(key.split(".")) if key else ()
        while parts and parts not in self.lines:
            parts = parts[:-1]
        return self.lines.get(parts)


def read_yaml(path: Path) -> Document:
    """The document in a file, which is UTF-8.

    Raises ValueError as `parse_document` does, and for a file in another encoding; OSError.
    """
    content = read_bytes(path, JSON_LIMIT)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(
            f"{path} is in UTF-16, expected UTF-8: save it as UTF-8 (PowerShell writes UTF-16 with >)"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(10, 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8: byte 0x{content[error.start]:02x} in line {line}; save it as UTF-8"
        ) from error
    return parse_document(text, str(path))


def parse_document(text: str, name: str) -> Document:
    """The document that a text holds.

    name: of the file, for errors

    Raises ValueError, with the line, for invalid YAML and several documents; a key that stands twice in one mapping, or
    that YAML reads as a truth value; values other than mappings, lists, texts, numbers, dates and truth values; aliases
    that lead back to themselves; and documents that are too long or too deep.
    """
    if len(text) > _LONGEST:
        raise ValueError(
            f"{name} has {len(text)} characters, expected a text for people of at most {_LONGEST}"
        )
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return Document(None)
        reader = _Reader(loader)
        values = reader.read(node, ())
        return Document(values, reader.lines)
    except _NodeError as error:
        raise ValueError(f"{name}, line {error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{name} is no valid YAML: {_told(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ValueError(
            f"{name} is no valid YAML: line {line}: the character {chr(error.character)!r} may not stand in it"
        ) from error


def _told(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "it cannot be read"
    if "'\\t'" in problem:
        problem += " (a tab: YAML is indented with spaces)"
    return _cut(problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}")


def _cut(text: str) -> str:
    return text if len(text) <= 300 else text[:300] + " ..."


class _NodeError(ValueError):
    """An error at a node. line: counted from 1."""

    def __init__(self, node: yaml.Node, message: str) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


class _Loader(yaml.SafeLoader):
    """PyYAML's own parser, which would recurse without a limit."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > _DEEPEST:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(
                problem=f"lists and mappings are nested more than {_DEEPEST} deep", problem_mark=mark
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


@dataclass
class _Reader:
    """Turns nodes into values, each alias into values of its own.

    lines: of the keys that were read
    count: values so far
    """

    loader: _Loader
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)
    count: int = 0
    _within: list[yaml.Node] = field(default_factory=list)

    def read(self, node: yaml.Node, path: tuple[str, ...]) -> Any:
        self.count += 1
        if self.count > _MOST:
            raise _NodeError(node, f"with its aliases written out this has more than {_MOST} values")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if any(node is outer for outer in self._within):
            raise _NodeError(node, "an alias stands in the very value that it names")
        self._within.append(node)
        try:
            if isinstance(node, yaml.SequenceNode) and node.tag.endswith(":seq"):
                return [self.read(item, (*path, str(i))) for i, item in enumerate(node.value)]
            if isinstance(node, yaml.MappingNode) and node.tag.endswith(":map"):
                return self._mapping(node, path)
        finally:
            self._within.pop()
        raise _NodeError(node, f"the tag {_cut(node.tag)} is not known here: write a list or a mapping")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            value = self.loader.construct_object(node)
        except Exception as error:  # a tag on a value that it does not fit raises many kinds of errors
            said = error.problem if isinstance(error, yaml.MarkedYAMLError) else error
            raise _NodeError(node, f"{reprlib.repr(node.value)} cannot be read: {_cut(str(said))}") from error
        if isinstance(value, int) and abs(value) >= 2**63:
            raise _NodeError(node, f"{_cut(node.value)} is too large a number")
        if not isinstance(value, _PLAIN):
            raise _NodeError(
                node, f"a value of the kind {type(value).__name__}, expected text, a number or a truth value"
            )
        return value

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag.endswith(":merge"):
                merged = {**self._merged(value_node, path), **merged}
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                raise _NodeError(
                    key_node, "a list or a mapping stands where a key is expected: put quotes around a text"
                )
            key = self._scalar(key_node)
            if isinstance(key, bool):
                raise _NodeError(
                    key_node,
                    f"YAML reads a key as {key}: put quotes around a key like yes, no, on or off",
                )
            line = key_node.start_mark.line + 1
            inner = (*path, str(key))
            if key in found:
                raise _NodeError(
                    key_node,
                    f"the key {reprlib.repr(key)} stands twice, first in line {self.lines[inner]}: leave one out",
                )
            self.lines[inner] = line
            found[key] = self.read(value_node, inner)
        return {**merged, **found}

    def _merged(self, node: yaml.Node, path: tuple[str, ...]) -> dict[Any, Any]:
        """The values that `<<: *other` adds; of several the first counts."""
        parts: Sequence[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = [self.read(part, path) for part in parts]
        if not all(isinstance(value, dict) for value in values):
            raise _NodeError(node, "<< takes in keys and values, and this has none")
        return {key: item for value in reversed(values) for key, item in value.items()}
