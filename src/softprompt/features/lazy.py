"""Many rows, each encoded when a step needs it, and not again cached: encoding takes far less time than the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from softprompt.data import Row
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import TaskEncoder
from softprompt.tasks.reading import encode_row


class LazilyEncoded(Sequence[EncodedRow]):
    """Rows with answers, as the encoder makes them: `encode_rows` without the list."""

    def __init__(self, rows: Sequence[Row], encoder: TaskEncoder) -> None:
        self._rows, self._encoder = rows, encoder

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[EncodedRow]:
        return (encode_row(self._encoder, number, row) for number, row in enumerate(self._rows))

    @overload
    def __getitem__(self, index: int) -> EncodedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedRow]: ...
    def __getitem__(self, index: int | slice) -> EncodedRow | list[EncodedRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return encode_row(self._encoder, index, self._rows[index])
