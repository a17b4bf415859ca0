"""A template with its tokenizer: rows become token ids, and rows that are too long are cut at one field."""

from __future__ import annotations

import itertools
import logging
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from typing import Literal as OneOf

from transformers import PreTrainedTokenizerBase

from softprompt.backbones.vocabulary import check_ids
from softprompt.data import Row
from softprompt.outputs import Picture
from softprompt.tasks.base import TextSetting
from softprompt.tasks.columns import read_column, read_fields
from softprompt.tasks.control_tokens import ControlTokens
from softprompt.tasks.template import Bos, Field, Literal, Part, Soft, Template, fill, with_masks
from softprompt.tasks.tokenizing import automatic_prefix, automatic_suffix, offsets, tokenize

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """The literals and fields between two slots, which are one string for the tokenizer; or a field that is an image."""

    parts: tuple[Part, ...]
    image: str | None = None


Values = Mapping[str, Any]
"""Text, or the image, of each field by its name."""


@dataclass(frozen=True)
class BoundTemplate:
    """A template with its tokenizer. A piece is either ids (virtual tokens -1 - k, BOS) or a run of text or an image.

    closed: whether the answer does not follow the text, so that it takes no room.
    """

    template: Template
    tokenizer: PreTrainedTokenizerBase
    pieces: tuple[tuple[int, ...] | Run, ...]
    closed: bool = False
    control_tokens: OneOf["text", "tokens"] = "tokens"
    rows: int | None = None
    """Rows of the embedding table, where the tokenizer has tokens beyond it."""
    read_picture: Callable[[Any], Picture] | None = None
    image_id: int | None = None

    @property
    def images(self) -> tuple[str, ...]:
        """The names of the fields that are images, once for each place."""
        runs = (piece for piece in self.pieces if isinstance(piece, Run))
        return tuple(run.image for run in runs if run.image is not None)

    def read(self, row: Row, columns: Mapping[str, str], others: Sequence[str] = ()) -> dict[str, Any]:
        """Return the text or the image of each field; see `softprompt.tasks.columns.read_fields` for the arguments.

        Raises ValueError also for an image that cannot be read, naming its column.
        """
        images = dict.fromkeys(self.images)
        texts = [name for name in self.template.fields if name not in images]
        values: dict[str, Any] = dict(read_fields(row, texts, columns, (*images, *others)))
        for name in images:
            value = read_column(row, name, columns, (*self.template.fields, *others))
            column = columns.get(name, name)
            if isinstance(value, list | tuple):
                raise ValueError(
                    f"column {column!r} holds {len(value)} images, and {{{name}}} is the place of one: put each into a"
                    " column of its own, as in {first:image}{second:image}"
                )
            assert self.read_picture is not None
            try:
                values[name] = self.read_picture(value)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f"column {column!r}: {error}") from error
        return values

    def pictures(self, values: Values) -> tuple[Picture, ...]:
        """Return the images of a row in the order of their places."""
        return tuple(values[name] for name in self.images)

    def encode(self, values: Values, *, max_tokens: int | None = None, reserved: int = 0) -> tuple[int, ...]:
        """Return the token ids of a row; virtual token k is -1 - k.

        If a row has more than `max_tokens - reserved` tokens, its cut field is shortened from the end until it fits: the
        result is that of the same row with a shorter value. Literals and other fields stay whole. If the template is
        closed, nothing is reserved, except what a single `{mask}` takes when it is widened to an answer of `reserved`
        tokens.
        Raises ValueError if that is not enough, and if the template does not say which field to cut.
        """
        ids = self._ids(values)
        if not ids:
            raise ValueError(
                f"template {self.template.source!r} gives no tokens for {reprlib.repr(dict(values))}; add"
                " some text, {bos} or a soft slot to it, so that there is something to predict from"
            )
        if self.closed:
            reserved = max(reserved - 1, 0) if self.template.masks == 1 else 0
        if max_tokens is None or len(ids) <= max_tokens - reserved:
            return ids
        return self._cut(values, len(ids), max_tokens, reserved)

    def _ids(self, values: Values) -> tuple[int, ...]:
        ids: list[int] = []
        for piece in self.pieces:
            ids += self.tokens(piece, values) if isinstance(piece, Run) else piece
        return tuple(ids)

    def is_empty(self, values: Values) -> bool:
        """Return whether a row has no tokens at all."""
        return not self._ids(values)

    def tokens(self, run: Run, values: Values) -> list[int]:
        """Return the token ids of a run of text, or those that stand for its image."""
        if run.image is not None:
            picture = values[run.image]
            if not isinstance(picture, Picture):
                raise ValueError(_no_images(run.image))
            return list(picture.tokens)
        parts = self._divided(run, values)
        if parts is None:
            return self._in_table(tokenize(self.tokenizer, fill(run.parts, values)))
        plain = ControlTokens.of(self.tokenizer, self.rows).plain(self.tokenizer)
        return self._in_table(
            [i for _, part in parts for i in ([part] if isinstance(part, int) else tokenize(plain, part))]
        )

    def spans(self, run: Run, values: Mapping[str, str]) -> list[tuple[int, tuple[int, int]]]:
        """Return the token ids of a run of text, each with the characters that it covers; the tokenizer must be a fast one."""
        if run.image is not None:
            raise ValueError(_no_images(run.image))
        text = fill(run.parts, values)
        parts = self._divided(run, values)
        if parts is None:
            found = offsets(self.tokenizer, text)
            self._in_table([i for i, _ in found])
            return found
        plain = ControlTokens.of(self.tokenizer, self.rows).plain(self.tokenizer)
        found = []
        for start, part in parts:
            if isinstance(part, int):
                found.append((part, (start, start)))  # of the template: it covers no character of a value
            else:
                found += [(i, (start + a, start + b)) for i, (a, b) in offsets(plain, part)]
        return found

    def _in_table(self, ids: list[int]) -> list[int]:
        """The ids. Raises ValueError for one that the backbone's embedding table has no row for, and for a placeholder."""
        if self.image_id is not None and self.image_id in ids:
            token = self.tokenizer.convert_ids_to_tokens(self.image_id)
            raise ValueError(
                f"a text holds {token!r}, in whose place an image stands: write {{image}} in the template for one, and keep"
                ' control_tokens="text", by which it is text in a row'
            )
        if self.rows is not None:
            check_ids(ids, self.tokenizer, self.rows)
        return ids

    def _divided(self, run: Run, values: Mapping[str, str]) -> list[tuple[int, str | int]] | None:
        """The run cut at the template's own control tokens; None where no value has one, and it is read as one string."""
        if self.control_tokens == "tokens":
            return None
        texts = [
            (part.text, True) if isinstance(part, Literal) else (values[part.name], False)
            for part in run.parts
            if isinstance(part, Literal | Field)
        ]
        return ControlTokens.of(self.tokenizer, self.rows).divided(texts)

    def _cut(self, values: Values, length: int, max_tokens: int, reserved: int) -> tuple[int, ...]:
        room = max_tokens - reserved
        name = self.template.cut
        if room <= 0:
            raise ValueError(
                f"a row may have max_tokens={max_tokens} tokens, and {reserved} are kept for its answer: lower"
                " max_new_tokens, or shorten the answers"
            )
        found = f"a row takes {length} tokens; max_tokens={max_tokens} less {reserved} (answer) is {room}"
        if name is None:
            raise ValueError(
                f"{found}; template {self.template.source!r} has the fields {list(self.template.fields)}:"
                ' say which one may be shortened, as in {field:cut} or cut="field"'
            )
        shortest = self._ids({**values, name: ""})
        if len(shortest) > room:
            raise ValueError(
                f"{found}, but without {name!r} the row still takes {len(shortest)}; raise max_tokens,"
                " shorten the template or the other fields, or use fewer virtual tokens"
            )
        value = values[name]
        if self.tokenizer.is_fast:
            return self._cut_by_offsets(values, name, value, length - room, room) or shortest
        return self._cut_by_bisection(values, name, value, room) or shortest

    def _cut_by_offsets(
        self, values: Values, name: str, value: str, excess: int, room: int
    ) -> tuple[int, ...] | None:
        control = ControlTokens.of(self.tokenizer, self.rows)
        as_text = self.control_tokens == "text" and control.are_in(value)
        ends = [
            end
            for _, (_, end) in offsets(control.plain(self.tokenizer) if as_text else self.tokenizer, value)
        ]
        times = sum(isinstance(part, Field) and part.name == name for part in self.template.parts)
        keep = len(ends)
        # Tokens merge differently at the new end, so one step may not be enough; each removes one or more.
        while (keep := keep - -(-excess // times)) > 0:
            ids = self._ids({**values, name: value[: ends[keep - 1]]})
            if len(ids) <= room:
                return ids
            excess = len(ids) - room
        return None

    def _cut_by_bisection(self, values: Values, name: str, value: str, room: int) -> tuple[int, ...] | None:
        best = None
        fits, too_long = 0, len(value)
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            ids = self._ids({**values, name: value[:middle]})
            if len(ids) <= room:
                best, fits = ids, middle
            else:
                too_long = middle
        return best


def bind_template(
    template: Template, setting: TextSetting, control_tokens: OneOf["text", "tokens"] = "tokens"
) -> BoundTemplate:
    """Return the template in its normal form, for one tokenizer and P virtual tokens.

    control_tokens: whether what looks like a control token in a value is text, or that token

    In a template without a slot, the virtual tokens stand at the front, after the BOS. Without `{bos}`, the tokens that
    the tokenizer itself adds in front of a text (many add none) go to the very front. In a closed setting, the tokens
    that it adds after a text stand at the very end. Without virtual tokens (P = 0), slots are left out.
    Raises ValueError if the slots do not take exactly P virtual tokens, if `{bos}` or `{mask}` is written and the
    tokenizer has no such token, and for `{mask}` where the answer follows the text.
    """
    parts = list(template.parts)
    if setting.read_picture is None and template.images:
        raise ValueError(
            f"template {template.source!r} shows the images {list(template.images)}, and this is {setting.family}, which reads"
            " no images among text: take a backbone such as SmolVLM or LLaVA, or leave them out"
        )
    shown = {part.name for part in parts if isinstance(part, Field) and _is_image(part, setting)}
    texts = [name for name in template.fields if name not in shown]
    if template.cut in shown or (template.cut is None and len(texts) == 1):
        template = replace(template, cut=texts[0] if len(texts) == 1 else None)
    if setting.read_picture is not None and not shown:
        log.info("template %r shows no image: every row is text alone", template.source)
    if template.masks:
        parts = with_masks(parts, _mask_token(setting, template.source))
    automatic = automatic_prefix(setting.tokenizer)
    if Bos() not in parts:
        parts.insert(0, Bos())
        bos = automatic
    else:
        bos = automatic or _begin_token(setting.tokenizer, template.source)
    if not any(isinstance(part, Soft) for part in parts):
        parts.insert(parts.index(Bos()) + 1, Soft())

    if not setting.virtual_tokens:  # zero-shot, demonstrations: the words alone
        parts = [part for part in parts if not isinstance(part, Soft)]
    numbered = sum(part.length or 0 for part in parts if isinstance(part, Soft))
    rest = setting.virtual_tokens - numbered
    if rest < 0 or (rest > 0 and Soft() not in parts):
        raise ValueError(
            f"the soft slots of template {template.source!r} take {numbered} virtual tokens, the method"
            " brings"
            f" {setting.virtual_tokens}; make them equal, or write one slot as {{soft}} to take what is"
            " left"
        )
    pieces: list[tuple[int, ...] | Run] = []
    virtual = 0

    def is_text(part: Part) -> bool:
        return isinstance(part, Literal) or (isinstance(part, Field) and not _is_image(part, setting))

    for of_text, group in itertools.groupby(parts, key=is_text):
        if of_text:
            pieces.append(Run(tuple(group)))
            continue
        for part in group:
            if isinstance(part, Field):
                pieces.append(Run((part,), image=part.name))
            elif isinstance(part, Soft):
                length = rest if part.length is None else part.length
                pieces.append(tuple(-1 - k for k in range(virtual, virtual + length)))
                virtual += length
            else:
                pieces.append(bos)
    if setting.closed and (suffix := automatic_suffix(setting.tokenizer)):
        pieces.append(suffix)
    return BoundTemplate(
        template,
        setting.tokenizer,
        tuple(pieces),
        setting.closed,
        control_tokens,
        setting.rows,
        setting.read_picture,
        setting.image_id,
    )


def _no_images(name: str) -> str:
    return (
        f"the template shows the image {{{name}}}, and this task reads text alone: leave the image out, or take"
        " TextClassification, TextGeneration or SequenceClassification"
    )


def _is_image(field: Field, setting: TextSetting) -> bool:
    return setting.read_picture is not None and (field.image or field.name == "image")


def _mask_token(setting: TextSetting, source: str) -> str:
    if not setting.closed:
        raise ValueError(
            f"template {source!r} writes {{mask}}, but a causal language model predicts what follows a text, not"
            " what is missing in it: drop {mask} and let the template end where the answer begins"
        )
    if setting.tokenizer.mask_token is None:
        raise ValueError(f"template {source!r} writes {{mask}}, but the tokenizer has no mask token; drop it")
    return str(setting.tokenizer.mask_token)


def _begin_token(tokenizer: PreTrainedTokenizerBase, source: str) -> tuple[int, ...]:
    for token in (tokenizer.bos_token_id, tokenizer.cls_token_id):
        if token is not None:
            return (int(token),)
    raise ValueError(
        f"template {source!r} writes {{bos}}, but the tokenizer has neither a BOS nor a CLS token; drop it"
    )
