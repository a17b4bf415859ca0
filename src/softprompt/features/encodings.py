"""Encoded rows, shared by all runs that encode the same rows in the same way."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import TaskEncoder
from softprompt.tasks.reading import encode_rows
from softprompt.tasks.room import Room


@dataclass(eq=False)
class Encodings:
    """A cache of lists of encoded rows, for one task on one backbone.

    memory  bytes that they may take: the lists that were used longest ago are evicted first, and a list that is larger
            is not cached; None: there is no limit
    """

    memory: int | None = None
    _kept: dict[Hashable, _Kept] = field(default_factory=dict)

    def of(
        self, rows: Sequence[Row], encoder: TaskEncoder, room: Room, *, answer: bool = True
    ) -> list[EncodedRow]:
        """The encoded rows.

        room    that the encoder was bound to
        answer  whether the rows hold the right answers, and these are encoded too
        """
        return self.kept(("rows", room, answer), rows, lambda: encode_rows(encoder, rows, answer=answer))

    def kept(
        self, key: Hashable, rows: Sequence[Any], made: Callable[[], list[EncodedRow]]
    ) -> list[EncodedRow]:
        """The cached value of this list of rows (the same object) under this key; else `made()`, which is then cached."""
        place = (id(rows), key)
        entry = self._kept.pop(place, None)
        if entry is None:
            found = made()
            entry = _Kept(rows, found, sum(map(_size, found)))
            if self.memory is not None and entry.size > self.memory:
                return found
        self._kept[place] = entry  # at the end: it was used last
        self._evict()
        return entry.encoded

    def _evict(self) -> None:
        taken = sum(entry.size for entry in self._kept.values())
        for place in [*self._kept]:
            if self.memory is None or taken <= self.memory:
                return
            taken -= self._kept.pop(place).size


@dataclass(frozen=True, eq=False)
class _Kept:
    """An entry. rows: a reference, so that no other list gets the same id."""

    rows: Sequence[Any]
    encoded: list[EncodedRow]
    size: int


def _size(row: EncodedRow) -> int:
    """About how many bytes a row takes, without its targets, which rows mostly share."""
    tensors = [row.media, None if row.known is None else row.known.states]
    own = 8 * len(row.context) + sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return own + sum(map(_size, row.windows))
