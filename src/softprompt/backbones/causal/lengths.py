"""Position encodings that change with the length of a pass, and sequences run so that none notices the others.

Long rope has one set of frequencies for sequences up to the length of pretraining and another beyond it; dynamic NTK has one
for each length beyond it. transformers takes both from the longest sequence of a pass, and dynamic NTK remembers the longest
of earlier passes. Sequences of different kinds must therefore not share a pass, nor keys and values.

Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.outputs import EncodedRow, TargetLogits


@dataclass(frozen=True)
class _Rotary:
    """Rotary positions that change with length.

    module  that computes them
    kind    of layers that they serve; None: all
    limit   longest sequence, in tokens, that has the frequencies of pretraining
    grows   whether each length beyond has its own frequencies (dynamic NTK), or all have the same (long rope)
    """

    module: nn.Module
    kind: str | None
    limit: int
    grows: bool

    def reset(self) -> None:
        """Forget the longest sequence of earlier passes."""
        if not self.grows:
            return
        module: Any = self.module
        prefix = "" if self.kind is None else f"{self.kind}_"
        frequencies = getattr(module, f"{prefix}inv_freq")
        original = getattr(module, f"{prefix}original_inv_freq").to(frequencies.device)
        module.register_buffer(f"{prefix}inv_freq", original, persistent=False)
        setattr(module, f"{prefix}max_seq_len_cached", self.limit)


@dataclass(frozen=True)
class Lengths:
    """Which lengths of sequences may share a pass of a model."""

    rotaries: tuple[_Rotary, ...] = ()

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

    def reset(self) -> None:
        """Forget earlier passes. To be called in front of each."""
        for rotary in self.rotaries:
            rotary.reset()


def lengths_of(model: nn.Module) -> Lengths:
    """The position encodings of a model that change with length, as transformers marks them (`dynamic_rope_update`)."""
    found: list[_Rotary] = []
    for part in model.modules():
        module: Any = part
        kinds = getattr(module, "rope_type", None)
        named: dict[Any, Any] = kinds if isinstance(kinds, dict) else {None: kinds}
        for kind, rope in named.items():
            if not isinstance(rope, str) or not (rope == "longrope" or "dynamic" in rope):
                continue
            parameters: Any = module.config.rope_parameters
            parameters = parameters if kind is None else parameters[kind]
            limit = (
                parameters["original_max_position_embeddings"]
                if rope == "longrope"
                else module.original_max_seq_len
            )
            found.append(_Rotary(module, kind, int(limit), grows=rope != "longrope"))
    return Lengths(tuple(found))


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
