"""Rehearsal: rows of earlier tasks are trained on again, so that the model forgets less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class Rehearsal:
    """A memory of rows. Its content depends only on the rows so far and the seed."""

    size: int = Field(gt=0)
    """Number of rows of each class, or in all for a reservoir."""
    kind: Literal["class", "reservoir"] = "class"
    """class: as many rows of each class, drawn without replacement, all of a class that has fewer; it grows with the
    classes. reservoir: of fixed size, each row so far being in it with the same probability (Vitter 1985)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draw."""

    def rows(self, so_far: Sequence[int], labels: Sequence[str]) -> list[int]:
        """The numbers of the rows in the memory, in their order.

        so_far: numbers of the rows in the order of learning. labels: of every row of the data, those to come included.
        """
        return sorted(
            per_class(so_far, labels, self.size, self.seed)
            if self.kind == "class"
            else reservoir(so_far, self.size, self.seed)
        )


def per_class(so_far: Sequence[int], labels: Sequence[str], size: int, seed: int) -> list[int]:
    """The first `size` rows of each class in a permutation of all rows: tasks to come change nothing."""
    generator = torch.Generator().manual_seed(seed)
    rank: list[int] = torch.randperm(len(labels), generator=generator).tolist()
    classes: dict[str, list[int]] = {}
    for row in sorted(so_far, key=rank.__getitem__):
        classes.setdefault(labels[row], []).append(row)
    return [row for rows in classes.values() for row in rows[:size]]


def reservoir(so_far: Sequence[int], size: int, seed: int) -> list[int]:
    """Vitter's algorithm R: row n takes the place of a kept one with probability size / n."""
    generator = torch.Generator().manual_seed(seed)
    kept = list(so_far[:size])
    for n, row in enumerate(so_far[size:], start=size):
        place = int(torch.randint(n + 1, (), generator=generator))
        if place < size:
            kept[place] = row
    return kept
