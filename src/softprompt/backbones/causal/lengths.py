"""Position encodings that change with the length of a pass, and sequences run so that none notices the others.

Long rope has one set of frequencies for sequences up to the length of pretraining and another beyond it; dynamic NTK has one
for each length beyond it. transformers takes both from the longest sequence of a pass (engine/rotary.py makes it forget
earlier passes). Sequences of different kinds must therefore not share a pass, nor keys and values.

Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from softprompt.backbones.engine import ChangingRotary, changing_rotaries
from softprompt.outputs import EncodedRow, TargetLogits


@dataclass(frozen=True)
class Lengths:
    """Which lengths of sequences may share a pass of a model."""

    rotaries: tuple[ChangingRotary, ...] = ()

    @property
    def limit(self) -> int | None:
        """The longest sequence whose frequencies do not depend on its length; None: no length matters."""
        return min((rotary.limit for rotary in self.rotaries), default=None)

    @property
    def switch(self) -> int | None:
        """The length beyond which long rope has other frequencies; None: there is no long rope."""
        return min((rotary.limit for rotary in self.rotaries if not rotary.grows), default=None)

    def kind(self, length: int) -> Hashable:
        """Sequences of equal kinds may share a pass. None: the frequencies are those of pretraining."""
        found = tuple(
            (length if rotary.grows else True) if length > rotary.limit else None for rotary in self.rotaries
        )
        return found if any(found) else None


def lengths_of(model: nn.Module) -> Lengths:
    """The position encodings of a model that change with length."""
    return Lengths(tuple(changing_rotaries(model)))


def score_in_groups(
    rows: Sequence[EncodedRow],
    before: Sequence[int],
    kind: Callable[[int], Hashable],
    score: Callable[[Sequence[EncodedRow], Hashable], TargetLogits],
) -> TargetLogits:
    """Score rows so that only sequences of one kind share a pass.

    rows    of the batch
    before  positions in front of each row's context
    kind    of a length
    score   (rows, their kind) -> logits
    """
    groups: dict[Hashable, list[tuple[int, EncodedRow]]] = {}
    number = 0
    for row, start in zip(rows, before, strict=True):
        for target in row.targets:
            single = replace(row, targets=(target,))
            length = start + len(row.context) + len(target) - 1
            groups.setdefault(kind(length), []).append((number, single))
            number += 1
    if len(groups) <= 1:
        return score(rows, next(iter(groups), None))
    parts, places = [], 0
    for each, members in groups.items():
        part = score([single for _, single in members], each)
        numbers = torch.tensor([n for n, _ in members], device=part.target.device)
        parts.append(replace(part, position=part.position + places, target=numbers[part.target]))
        places += len(part.logits)
    owner = torch.cat([part.target for part in parts])
    order = owner.argsort(stable=True)
    return TargetLogits(
        logits=torch.cat([part.logits for part in parts]),
        position=torch.cat([part.position for part in parts])[order],
        token=torch.cat([part.token for part in parts])[order],
        target=owner[order],
        counts=tuple(len(row.targets) for row in rows),
    )


def states_in_groups(
    rows: Sequence[EncodedRow],
    before: Sequence[int],
    kind: Callable[[int], Hashable],
    states: Callable[[Sequence[EncodedRow], Hashable], Tensor],
) -> Tensor:
    """States of rows where they are read, (n, d), so that only sequences of one kind share a pass; see `score_in_groups`."""
    groups = grouped([start + len(row.context) for row, start in zip(rows, before, strict=True)], kind)
    if len(groups) <= 1:
        return states(rows, next(iter(groups), None))
    found: dict[int, Tensor] = {}
    for each, members in groups.items():
        part = states([rows[b] for b in members], each)
        found |= zip(members, part.split([len(rows[b].read) for b in members]), strict=True)
    return torch.cat([found[b] for b in range(len(rows))])


def grouped(lengths: Sequence[int], kind: Callable[[int], Hashable]) -> dict[Hashable, list[int]]:
    """The places of the lengths of each kind."""
    groups: dict[Hashable, list[int]] = {}
    for place, length in enumerate(lengths):
        groups.setdefault(kind(length), []).append(place)
    return groups
