"""Targets in the place of masks: which sequences must be run, and where each target token is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from softprompt.outputs import EncodedRow


@dataclass(frozen=True)
class Cloze:
    """The masks of a batch.

    rows      the sequences to run: each row once for each number of masks that its targets need
    places    (number in `rows`, position) of each mask that is scored, once
    position, token, target, counts   as in TargetLogits; `position` indexes `places`
    """

    rows: list[EncodedRow]
    places: list[tuple[int, int]]
    position: list[int]
    token: list[int]
    target: list[int]
    counts: tuple[int, ...]


def read_cloze(rows: Sequence[EncodedRow], mask: int, word: str) -> Cloze:
    """Token j of a target is predicted at mask j of its row; a row's only mask is widened to the target's length.

    rows  of the batch
    mask  id of the mask token
    word  the mask token as it is written

    Raises ValueError for a row without a mask, and for a row with several masks and a target of another number of tokens.
    """
    cloze = Cloze([], [], [], [], [], tuple(len(row.targets) for row in rows))
    number = 0
    for row in rows:
        masks = [i for i, atom in enumerate(row.context) if atom == mask]
        begins: dict[int, int] = {}  # length of a target -> where its masks are among `places`
        for target in row.targets:
            length = len(target)
            if not masks:
                raise ValueError(
                    "a row has no mask: a masked language model predicts a word where one is missing, so write"
                    " {mask} in the template where the answer stands, as in '{text} It was {mask}.'"
                )
            if len(masks) > 1 and len(masks) != length:
                raise ValueError(
                    f"a row has {len(masks)} masks and an answer of {length} tokens {target}: write one {{mask}},"
                    f" which is widened to the answer's length, or choose answers of {len(masks)} tokens each"
                    f" (a {word} in the text counts as a mask too)"
                )
            if length not in begins:
                widened, at = row.context, masks
                if len(masks) == 1:
                    (i,) = masks
                    widened = row.context[:i] + (mask,) * length + row.context[i + 1 :]
                    at = list(range(i, i + length))
                begins[length] = len(cloze.places)
                cloze.places.extend((len(cloze.rows), i) for i in at)
                cloze.rows.append(replace(row, context=widened, targets=(), gold=None))
            cloze.position.extend(range(begins[length], begins[length] + length))
            cloze.token.extend(target)
            cloze.target.extend([number] * length)
            number += 1
    return cloze
