"""The batch of a causal model as a forest: prompts are roots, rows hang from them, label words from the rows.

In a causal model a token's state depends only on the tokens before it. So what several rows have in common at the front
(the virtual tokens, the template's opening words, demonstrations) is computed once and attended to by all of them, and
the words of all labels share their row. There is no padding: the tokens of all segments stand one after the other in a
single sequence of N tokens, level by level.

Letters: N packed tokens, S segments of a level, T tokens of its longest segment, G prompts, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from softprompt.outputs import EncodedRow

Atoms = tuple[int, ...]


@dataclass(frozen=True)
class Level:
    """Segments of one depth, contiguous in the packed sequence.

    lengths    number of tokens of each segment, length S
    parents    (S,) number of the segment of the level above that each continues; None at the top
    prompts    (S,) number of the prompt that each segment carries; at the top it stands behind that prompt's prefix
    slots      (n,) place of each of the level's n tokens in the padded (S, T) grid; None: there is no padding, n = S * T
    both_ways  whether all tokens of a segment see each other; otherwise each sees only those before it
    """

    lengths: tuple[int, ...]
    parents: Tensor | None
    prompts: Tensor
    slots: Tensor | None
    both_ways: bool = False

    @property
    def segments(self) -> int:
        return len(self.lengths)

    @property
    def width(self) -> int:
        return max(self.lengths)

    @property
    def tokens(self) -> int:
        return sum(self.lengths)


@dataclass(frozen=True)
class PrefixTree:
    """A packed batch.

    ids        (N,) token id, 0 where a virtual token stands
    soft       (n,) packed places of virtual tokens; `slot` (n,) says which each is: prompt * P + k
    positions  (N,) position of each token in its own sequence, heads and prefixes included
    text       (N,) running number of each text token in its own sequence (virtual tokens do not count)
    prompts    (N,) prompt of each token
    levels     from the top; `level_positions` has the positions of each level's tokens
    scored     (U,) packed places whose next-token logits are wanted
    position, token, target, counts   see TargetLogits
    ends       (B,) packed place of each row's last context token
    read       packed places whose states a head reads, row by row; `read_once` has each of them once, in order
    """

    ids: Tensor
    soft: Tensor
    slot: Tensor
    positions: Tensor
    text: Tensor
    prompts: Tensor
    levels: tuple[Level, ...]
    level_positions: tuple[Tensor, ...]
    scored: Tensor
    position: Tensor
    token: Tensor
    target: Tensor
    counts: tuple[int, ...]
    ends: Tensor
    read: Tensor
    read_once: Tensor

    @property
    def tokens(self) -> int:
        return int(self.ids.shape[0])


def common_prefix(sequences: Sequence[Atoms]) -> int:
    """How many atoms all sequences share at the front."""
    first, last = min(sequences), max(sequences)  # the two that differ earliest
    for i, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b:
            return i
    return min(len(first), len(last))


@lru_cache(maxsize=256)
def continuations(targets: tuple[Atoms, ...]) -> tuple[tuple[Atoms, ...], tuple[int, ...]]:
    """The distinct runs of tokens that must be fed to score all targets, and the number of the run that each target reads.

    The number is -1 for a target that reads none: the last token of a target is only predicted, never fed. A run that
    begins a longer one is part of it.
    """
    runs: list[Atoms] = []
    for run in sorted({target[:-1] for target in targets if len(target) > 1}, key=len, reverse=True):
        if not any(longer[: len(run)] == run for longer in runs):
            runs.append(run)
    reads = [
        next((i for i, run in enumerate(runs) if run[: len(t) - 1] == t[:-1]), -1) if len(t) > 1 else -1
        for t in targets
    ]
    return tuple(runs), tuple(reads)


def shared_heads(rows: Sequence[EncodedRow], prompts: int) -> list[Atoms]:
    """For each prompt, what all its rows have in common at the front. Every row keeps at least one atom of its own.

    A prompt that only one row carries has an empty head: there is nothing to share.
    """
    contexts: list[list[Atoms]] = [[] for _ in range(prompts)]
    for row in rows:
        contexts[row.prompt].append(row.context)
    heads = []
    for group in contexts:
        length = min(common_prefix(group), min(map(len, group)) - 1) if len(group) > 1 else 0
        heads.append(group[0][:length] if length else ())
    return heads


class _Segments:
    """The segments of one level while they are collected."""

    def __init__(self) -> None:
        self.atoms: list[Atoms] = []
        self.parents: list[int] = []
        self.starts: list[tuple[int, int, int]] = []  # position, text number, prompt of the first token

    def add(self, atoms: Atoms, parent: int, start: tuple[int, int, int]) -> int:
        self.atoms.append(atoms)
        self.parents.append(parent)
        self.starts.append(start)
        return len(self.atoms) - 1


@dataclass(frozen=True)
class _Reading:
    """Where the targets of one row are predicted.

    last    place of the row's last context token in the row's segment
    leaves  for each target, the leaf that holds its tokens; None: they follow the context in the row's segment, or
            the target is a single token, which is predicted and never fed
    """

    last: int
    leaves: tuple[int | None, ...]


def _texts(atoms: Atoms) -> int:
    return sum(atom >= 0 for atom in atoms)


def build_tree(
    rows: Sequence[EncodedRow],
    heads: Sequence[Atoms],
    *,
    virtual_tokens: int,
    lengths: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    text_offsets: Sequence[int] | None = None,
    both_ways: bool = False,
    device: torch.device | str = "cpu",
) -> PrefixTree:
    """Pack rows whose contexts begin with their prompt's head.

    rows            of the batch
    heads           per prompt, the atoms that are computed once for all its rows (may be empty)
    virtual_tokens  P, number of virtual tokens of the longest prompt; they are numbered through the prompts
    lengths         per prompt, its number of virtual tokens, where prompts differ
    offsets         per prompt, number of positions of its key-value prefix
    text_offsets    per prompt, number of text tokens in that prefix
    both_ways       whether a row's context is read both ways (its targets never are); no head can be shared then
    device          of the tree's tensors

    Raises ValueError for an empty context or a virtual token that the prompt does not have.
    """
    offsets = offsets or [0] * len(heads)
    text_offsets = text_offsets or [0] * len(heads)
    roots, stems, leaves = _Segments(), _Segments(), _Segments()
    for g, head in enumerate(heads):
        roots.add(head, -1, (offsets[g], text_offsets[g], g))
    readings: list[_Reading] = []
    for row in rows:
        head, g = heads[row.prompt], row.prompt
        own = row.context[len(head) :]
        if not own:
            raise ValueError(
                "a row has no token of its own: an empty text without any template cannot be scored"
            )
        start = (offsets[g] + len(head), text_offsets[g] + _texts(head), g)
        last = len(own) - 1
        if len(row.targets) == 1 and not both_ways:  # the only target continues the row's own segment
            stems.add(own + row.targets[0][:-1], g, start)
            readings.append(_Reading(last, (None,)))
            continue
        stem = stems.add(own, g, start)
        runs, read = continuations(row.targets)
        after = (start[0] + len(own), start[1] + _texts(own), g)
        numbers = [leaves.add(run, stem, after) for run in runs]
        readings.append(_Reading(last, tuple(None if run < 0 else numbers[run] for run in read)))

    # Where no prompt shares anything the rows are the top; where no target is longer than a token they are the end.
    parts = [part for part in (roots, stems, leaves) if part is stems or any(part.atoms)]
    tokens = _lay_tokens(parts, virtual_tokens, lengths)
    asked = _find_places(rows, heads, readings, tokens.begins, stem_level=parts.index(stems))

    def tensor(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    levels = tuple(
        _level(part, top=depth == 0, both_ways=both_ways and part is stems, device=device)
        for depth, part in enumerate(parts)
    )
    positions = tensor(tokens.positions)
    return PrefixTree(
        ids=tensor(tokens.ids),
        soft=tensor(tokens.soft),
        slot=tensor(tokens.slot),
        positions=positions,
        text=tensor(tokens.text),
        prompts=tensor(tokens.prompts),
        levels=levels,
        level_positions=positions.split([level.tokens for level in levels]),
        scored=tensor(asked.scored),
        position=tensor(asked.position),
        token=tensor(asked.token),
        target=tensor(asked.target),
        counts=tuple(len(row.targets) for row in rows),
        ends=tensor(asked.ends),
        read=tensor(asked.read),
        read_once=tensor(sorted(set(asked.read))),
    )


@dataclass(frozen=True)
class _Tokens:
    """The packed tokens, as lists of the fields of PrefixTree.

    begins  packed place where each segment of each level begins
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    soft: list[int] = field(default_factory=list)
    slot: list[int] = field(default_factory=list)
    begins: list[list[int]] = field(default_factory=list)


def _lay_tokens(parts: Sequence[_Segments], virtual_tokens: int, lengths: Sequence[int] | None) -> _Tokens:
    """The segments of all levels one after the other. Raises ValueError for a virtual token that a prompt does not have."""
    tokens = _Tokens()
    for part in parts:
        tokens.begins.append([])
        for atoms, (position, number, g) in zip(part.atoms, part.starts, strict=True):
            tokens.begins[-1].append(len(tokens.ids))
            for i, atom in enumerate(atoms):
                if atom < 0:
                    k = -1 - atom
                    limit = virtual_tokens if lengths is None else lengths[g]
                    if k >= limit:
                        raise ValueError(f"a row asks for virtual token {k}, prompt {g} has {limit}")
                    tokens.soft.append(len(tokens.ids))
                    tokens.slot.append(g * virtual_tokens + k)
                tokens.positions.append(position + i)
                tokens.text.append(number)
                number += atom >= 0
                tokens.ids.append(max(atom, 0))
                tokens.prompts.append(g)
    return tokens


@dataclass(frozen=True)
class _Places:
    """What rows ask for, as lists of the fields of PrefixTree."""

    scored: list[int]
    position: list[int]
    token: list[int]
    target: list[int]
    ends: list[int]
    read: list[int]


def _find_places(
    rows: Sequence[EncodedRow],
    heads: Sequence[Atoms],
    readings: Sequence[_Reading],
    begins: Sequence[Sequence[int]],
    *,
    stem_level: int,
) -> _Places:
    """The packed places where targets are predicted, contexts end and heads read."""
    scored: dict[int, int] = {}
    position: list[int] = []
    token: list[int] = []
    target: list[int] = []
    ends: list[int] = []
    read: list[int] = []
    number = 0
    for row, stem, reading in zip(rows, begins[stem_level], readings, strict=True):
        end = stem + reading.last
        ends.append(end)
        head = len(heads[row.prompt])
        read += [begins[0][row.prompt] + i if i < head else stem + i - head for i in row.read]
        for words, leaf in zip(row.targets, reading.leaves, strict=True):
            for j, word in enumerate(words):
                # The first word is predicted at the end of the context, the others where the word before them is fed.
                if j == 0 or leaf is None:
                    place = end + j
                else:
                    place = begins[stem_level + 1][leaf] + j - 1
                position.append(scored.setdefault(place, len(scored)))
                token.append(word)
                target.append(number)
            number += 1
    return _Places(list(scored), position, token, target, ends, read)


def _level(part: _Segments, *, top: bool, both_ways: bool, device: torch.device | str) -> Level:
    lengths = tuple(map(len, part.atoms))
    width = max(lengths)
    slots = None
    if min(lengths) != width:
        slots = torch.cat([torch.arange(n) + s * width for s, n in enumerate(lengths)]).to(device)
    parents = None if top else torch.tensor(part.parents, dtype=torch.long, device=device)
    prompts = torch.tensor([start[2] for start in part.starts], dtype=torch.long, device=device)
    return Level(lengths=lengths, parents=parents, prompts=prompts, slots=slots, both_ways=both_ways)
