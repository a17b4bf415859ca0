"""What tasks with a head have in common: where it reads, and which outputs belong to which row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from softprompt.data import by_length
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, TextSetting

Pooling = Literal["first", "last", "mean"]
T = TypeVar("T")


def default_pooling(setting: TextSetting) -> Pooling:
    """Encoders are read at their first token, which is [CLS]; decoders at their last, which has seen the others.

    T5 has no such token: encoders in front of a decoder are read at all tokens.
    """
    match setting.family:
        case "causal-lm":
            return "last"
        case "encoder-decoder":
            return "mean"
        case _:
            return "first"


def check_pooling(pooling: Pooling, setting: TextSetting) -> None:
    """Raises ValueError for the first token of a decoder, which has seen nothing of the text."""
    if pooling == "first" and setting.family == "causal-lm":
        raise ValueError(
            'pooling is "first", and in a causal language model the first token sees no other: take "last" or "mean"'
        )


def pooled_positions(context: Sequence[int], pooling: Pooling) -> tuple[int, ...]:
    """Where the head reads: real tokens only. Virtual tokens do not count, and padding is none of the row's.

    Raises ValueError for a row without any token.
    """
    text = [i for i, atom in enumerate(context) if atom >= 0]
    if not text:
        raise ValueError("a row has no token beside virtual ones: there is nothing that a head could read")
    match pooling:
        case "first":
            return (text[0],)
        case "last":
            return (text[-1],)
        case "mean":
            return tuple(text)


def split_outputs(outputs: Tensor, rows: Sequence[EncodedRow]) -> tuple[Tensor, ...]:
    """The outputs of each row: (n, outputs) -> B times (its positions, or 1 where it is pooled, outputs)."""
    return outputs.split([min(1, len(row.read)) if row.pooled else len(row.read) for row in rows])


def in_batches(
    lengths: Sequence[int],
    batch_size: int,
    on_batch: Callable[[int], None] | None,
    answers: Callable[[Sequence[int]], Iterable[T]],
) -> list[T]:
    """An answer for each row, in order, from batches of rows of similar length.

    Arguments:
        lengths: of each row
        batch_size: rows of a batch
        on_batch: is told the number of rows done so far after each batch
        answers: gives those of a batch, by the numbers of its rows
    """
    found: dict[int, T] = {}
    for batch in by_length(lengths, batch_size):
        found |= zip(batch, answers(batch), strict=True)
        if on_batch is not None:
            on_batch(len(found))
    return [found[i] for i in range(len(lengths))]


@torch.no_grad()
def read_outputs(
    model: Scorer,
    rows: Sequence[EncodedRow],
    batch_size: int,
    on_batch: Callable[[int], None] | None,
    read: Callable[[EncodedRow, Tensor], T],
) -> list[T]:
    """What `read` makes of each row and its outputs, (n, outputs), in order. The rest is as in `in_batches`."""

    def answers(batch: Sequence[int]) -> list[T]:
        mine = [rows[i] for i in batch]
        return list(map(read, mine, split_outputs(model.outputs(mine), mine)))

    return in_batches([len(row.context) for row in rows], batch_size, on_batch, answers)


def check_answered(rows: Sequence[EncodedRow]) -> None:
    """Raises ValueError for a row that was encoded without its answer."""
    for i, row in enumerate(rows):
        if not row.answer and (row.read or row.targets):
            raise ValueError(f"row {i} was encoded without its answer; the loss needs it")
