"""A template says how a row and its soft slots become tokens.

    {column}      the value of a column of any name; {column:cut} marks the one that may be shortened
    {image}       an image, on a backbone that reads images among text; {column:image} one from a column of another name
    {soft:N}      a slot for N virtual tokens; {soft} takes what the numbered slots leave
    {bos}         the tokens that the tokenizer adds in front of a text
    {mask}        the tokenizer's mask token, where a masked language model puts the answer
    {{ and }}     a brace

Everything else is literal, even a space next to a slot: "{soft:3} {text}" is three virtual tokens, then the text with a
space in front. All that stands between two slots is tokenised as one string, so that literals and values merge as they do
in running text, and special tokens that the template writes out ("<|im_start|>", "[SEP]") are read as special tokens; those in
a value are text like any other. The mask is part of such a string too: a tokenizer that drops the space before it also drops
it here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated
from typing import Literal as OneOf

from transformers import PreTrainedTokenizerBase

from softprompt.later import LATER
from softprompt.tasks.columns import guess
from softprompt.tasks.tokenizing import automatic_prefix

ValuesWithControlTokens = Annotated[OneOf["text", "tokens"], LATER]
"""What the control tokens of a tokenizer are in the values of a row. Prompts that were saved before have tokens."""


@dataclass(frozen=True)
class Literal:
    text: str


@dataclass(frozen=True)
class Field:
    name: str
    cut: bool = False
    image: bool = False
    """Whether it is marked as an image. One that is called "image" is an image too where the backbone reads any."""


@dataclass(frozen=True)
class Soft:
    length: int | None = None
    """The number of virtual tokens; None: what the numbered slots leave."""


@dataclass(frozen=True)
class Bos:
    pass


@dataclass(frozen=True)
class Mask:
    pass


Part = Literal | Field | Soft | Bos | Mask

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]|[^{}]+")


@lru_cache(256)  # a task is asked for its fields row by row
def parse_template(source: str) -> tuple[Part, ...]:
    """Return the parts of a template, in order; neighbouring literals are joined.

    Raises ValueError with the position for a lone brace, an empty or unknown field mark, a slot length that
    is not a positive number, a second `{bos}` or a second `{soft}` without a number.
    """
    parts: list[Part] = []
    literal = ""
    for match in _TOKEN.finditer(source):
        token = match.group()
        if token in ("{", "}"):
            raise ValueError(
                f"template {source!r}: lone {token!r} at position {match.start()}; write {token * 2!r} for"
                " a brace"
            )
        if match.group(1) is None:
            literal += token[0] if token in ("{{", "}}") else token
            continue
        if literal:
            parts.append(Literal(literal))
            literal = ""
        parts.append(_parse_braces(match.group(1), source, match.start()))
    if literal:
        parts.append(Literal(literal))
    for part in (Bos(), Soft()):
        if parts.count(part) > 1:
            name = "{bos}" if part == Bos() else "{soft} without a number"
            raise ValueError(f"template {source!r} has {name} {parts.count(part)} times; one is allowed")
    return tuple(parts)


def _parse_braces(inside: str, source: str, position: int) -> Part:
    name, colon, mark = inside.partition(":")
    where = f"template {source!r}, position {position}: {{{inside}}}"
    if name == "soft":
        if not colon:
            return Soft()
        if not re.fullmatch(r"[0-9]+", mark) or int(mark) == 0:
            raise ValueError(f"{where}: the length of a soft slot is a positive number, as in {{soft:5}}")
        return Soft(int(mark))
    if inside == "bos":
        return Bos()
    if inside == "mask":
        return Mask()
    if not name.strip():
        raise ValueError(f"{where} names no column; write {{{{}}}} for a pair of braces")
    if colon and (mark not in ("cut", "image") or name in ("bos", "mask")):
        raise ValueError(
            f"{where}: unknown mark {mark!r}; a field is {{{name}}}, {{{name}:cut}} or {{{name}:image}}"
        )
    return Field(name, cut=mark == "cut", image=mark == "image")


@dataclass(frozen=True)
class Template:
    """A parsed template. `cut` is the field that may be shortened; None: the template does not say which."""

    source: str
    parts: tuple[Part, ...]
    cut: str | None = None

    @staticmethod
    def parse(source: str, cut: str | None = None) -> Template:
        """Parse a template, see `parse_template`. `cut` names the field that may be shortened, like a `{field:cut}` mark.

        Raises ValueError also if `cut` is not a field of the template, or two fields are marked.
        """
        template = Template(source, parse_template(source))
        marked = list(dict.fromkeys(p.name for p in template.parts if isinstance(p, Field) and p.cut))
        if cut is not None and cut not in template.fields:
            raise ValueError(
                f"cut={cut!r} is not a field of template {source!r}{guess(cut, template.fields)}"
            )
        if cut is not None and cut not in marked:
            marked.append(cut)
        if len(marked) > 1:
            raise ValueError(f"only one field may be cut, template {source!r} and cut={cut!r} name {marked}")
        texts = [name for name in template.fields if name not in template.images]
        if marked and marked[0] not in texts:
            raise ValueError(
                f"template {source!r} cuts {marked[0]!r}, which is an image: name a field of text"
            )
        if not marked and len(texts) == 1:
            marked = texts
        return Template(source, template.parts, marked[0] if marked else None)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, each once, in order."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, Field)))

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the fields that are marked as images."""
        return tuple(dict.fromkeys(p.name for p in self.parts if isinstance(p, Field) and p.image))

    @property
    def masks(self) -> int:
        """The number of `{mask}` in the template."""
        return self.parts.count(Mask())

    def fill(self, values: Mapping[str, str], *, mask: str = "{mask}") -> str:
        """Return the text of a row without slots, with literals exactly as written and `mask` in place of each mask."""
        return fill(with_masks(self.parts, mask), values)


def slot_in_front(source: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template with a slot before everything, even an automatic BOS; one that has slots stays as it is."""
    parts = parse_template(source)
    if any(isinstance(part, Soft) for part in parts):
        return source
    return ("{soft}" if Bos() in parts or not automatic_prefix(tokenizer) else "{soft}{bos}") + source


def check_fields(template: Template, media: str | None = None) -> None:
    """Raise ValueError for a template without a column, unless a media column says what differs from row to row."""
    if template.fields or media is not None:
        return
    hint = "write {column} where its text stands"
    if "{{" in template.source:
        hint = "double braces are braces of the text, so write {column} with single ones"
    raise ValueError(f"template {template.source!r} has no column, and every row would read the same: {hint}")


def with_masks(parts: Iterable[Part], mask: str) -> list[Part]:
    """Return the parts with a text in the place of each `{mask}`."""
    return [Literal(mask) if isinstance(part, Mask) else part for part in parts]


def fill(parts: Iterable[Part], values: Mapping[str, str]) -> str:
    """Return the text of the literals and fields."""
    texts = (
        p.text if isinstance(p, Literal) else values[p.name] for p in parts if isinstance(p, Literal | Field)
    )
    return "".join(texts)
