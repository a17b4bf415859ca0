"""What tasks share when they read a model: batches, the positions that a head reads, and the outputs of each row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from softprompt.data import Row, by_length
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Scorer, TaskEncoder, TextSetting

Pooling = Literal["first", "last", "mean"]
T = TypeVar("T")


def default_pooling(setting: TextSetting) -> Pooling:
    """Return how a head reads this family if the task does not say.

    An encoder is read at its first token, which is [CLS], and a decoder at its last token, which has seen all others. The
    encoder of an encoder-decoder has no such token (T5), so the mean of all tokens is read.
    """
    match setting.family:
        case "causal-lm":
            return "last"
        case "encoder-decoder":
            return "mean"
        case _:
            return "first"


def check_pooling(pooling: Pooling, setting: TextSetting) -> None:
    """Raise ValueError for the first token of a decoder, which has not seen the text."""
    if pooling == "first" and setting.family == "causal-lm":
        raise ValueError(
            'pooling is "first", and in a causal language model the first token sees no other: take "last" or "mean"'
        )


def pooled_positions(context: Sequence[int], pooling: Pooling) -> tuple[int, ...]:
    """Return the positions that the head reads. They are those of real tokens, never of virtual tokens or padding.

    Raises ValueError for a row that has no token except virtual ones.
    """
    text = [i for i, atom in enumerate(context) if atom >= 0]
    if not text:
        raise ValueError("a row has no tokens except virtual ones: there is nothing that a head could read")
    match pooling:
        case "first":
            return (text[0],)
        case "last":
            return (text[-1],)
        case "mean":
            return tuple(text)


def encode_rows(encoder: TaskEncoder, rows: Sequence[Row], *, answer: bool = True) -> list[EncodedRow]:
    """Return rows as tokens, in order; see `TaskEncoder.encode`. A ValueError says which row it is about, counted from 0."""
    return [encode_row(encoder, number, row, answer=answer) for number, row in enumerate(rows)]


def encode_row(encoder: TaskEncoder, number: int, row: Row, *, answer: bool = True) -> EncodedRow:
    """Return a row as tokens. A ValueError says which row it is about."""
    try:
        return encoder.encode(row, answer=answer)
    except ValueError as error:
        raise ValueError(f"row {number}: {error}") from error


def split_outputs(outputs: Tensor, rows: Sequence[EncodedRow]) -> tuple[Tensor, ...]:
    """Split outputs by row: (n, outputs) -> for each of B rows (its positions, or 1 if it is pooled, outputs)."""
    return outputs.split([min(1, len(row.read)) if row.pooled else len(row.read) for row in rows])


def in_batches(
    lengths: Sequence[int],
    batch_size: int,
    on_batch: Callable[[int], None] | None,
    answers: Callable[[Sequence[int]], Iterable[T]],
) -> list[T]:
    """Answer batches of rows of similar length, and return an answer for each row, in order.

    Arguments:
        lengths: the length of each row
        batch_size: the number of rows in a batch
        on_batch: called after each batch with the number of rows done so far
        answers: given the indices of a batch's rows, returns their answers
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
    """Return what `read` makes of each row and its outputs, (n, outputs), in order. `in_batches` explains the rest."""

    def answers(batch: Sequence[int]) -> list[T]:
        mine = [rows[i] for i in batch]
        return list(map(read, mine, split_outputs(model.outputs(mine), mine)))

    return in_batches([len(row.context) for row in rows], batch_size, on_batch, answers)


def check_answered(rows: Sequence[EncodedRow]) -> None:
    """Raise ValueError for a row that was encoded without its answer."""
    for i, row in enumerate(rows):
        if not row.answer and (row.read or row.targets):
            raise ValueError(f"row {i} was encoded without its answer; the loss needs it")
