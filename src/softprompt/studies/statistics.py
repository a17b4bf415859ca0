"""Mean, spread, interval and paired test of a few scores."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_EXACT = 14  # pairs up to which every one of the 2^n flips is counted
_DRAWS = 20_000  # flips that are drawn beyond that


@dataclass(frozen=True)
class Summary:
    """Scores of one setting over its seeds.

    std   sample standard deviation; None: fewer than two scores
    low, high  95 % interval of the mean by Student's t, which takes the scores for draws of a normal distribution
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int


def summarize(scores: Sequence[float]) -> Summary:
    """Raises ValueError for no scores."""
    if not scores:
        raise ValueError("there are no scores to summarize")
    mean, n = statistics.fmean(scores), len(scores)
    if n < 2:
        return Summary(mean, None, None, None, n)
    std = statistics.stdev(scores)
    reach = t_quantile(n - 1) * std / math.sqrt(n)
    return Summary(mean, std, mean - reach, mean + reach, n)


def t_quantile(freedom: int, inside: float = 0.95) -> float:
    """The t within which a Student variable lies with probability `inside`, by bisection."""
    low, high = 0.0, 1.0
    while t_inside(high, freedom) < inside:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_inside(middle, freedom) < inside else (low, middle)
    return (low + high) / 2


def t_inside(t: float, freedom: int) -> float:
    """P(|T| < t) for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(3 if odd else 2, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def sign_flip_p(differences: Sequence[float]) -> float:
    """How often the mean of paired differences is at least as far from 0 when each one's sign is tossed: two-sided p.

    Fisher's exact permutation test: it assumes nothing of the distribution but symmetry. Counted exactly up to 14 pairs, else
    over 20,000 draws with a fixed seed. With n pairs no p is below 2 / 2^n, which is 0.25 for 3.
    Raises ValueError for no pairs.
    """
    if not differences:
        raise ValueError("there are no pairs to compare")
    seen = abs(math.fsum(differences)) * (1 - 1e-12)  # equal sums may differ in the last bit
    if len(differences) <= _EXACT:
        flips = list(itertools.product((1, -1), repeat=len(differences)))
        return sum(_flipped(differences, signs) >= seen for signs in flips) / len(flips)
    dice = random.Random(0)
    hits = sum(
        _flipped(differences, [dice.choice((1, -1)) for _ in differences]) >= seen for _ in range(_DRAWS)
    )
    return (hits + 1) / (_DRAWS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = largest
    return corrected


def _flipped(differences: Sequence[float], signs: Sequence[int]) -> float:
    return abs(math.fsum(sign * value for sign, value in zip(signs, differences, strict=True)))
