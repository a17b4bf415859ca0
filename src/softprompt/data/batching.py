"""The order in which rows are trained on, and batches of rows of similar length."""

from __future__ import annotations

from collections.abc import Sequence

from softprompt.data.drawing import permutation


def batches(n_rows: int, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of each batch of an epoch: every row once, shuffled; the last batch may be short.

    A pure function of its arguments, so a run that resumes in the middle of an epoch sees the rows it would
    have seen.
    Raises ValueError for batch_size < 1.
    """
    # Any mixing that keeps (seed, epoch) pairs apart will do; 1,000,003 is above any count of epochs.
    order = permutation(n_rows, (seed * 1_000_003 + epoch) % 2**63)
    return _chunks(order, batch_size)


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices in batches of similar length, longest first: if memory runs out, it does so at once.

    Raises ValueError for batch_size < 1.
    """
    return _chunks(sorted(range(len(lengths)), key=lambda i: -lengths[i]), batch_size)


def _chunks(order: list[int], batch_size: int) -> list[list[int]]:
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected 1 or more")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
