"""Intervals of scores of rows, and of the difference between two methods on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_DRAWS = 2000


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def interval_of(scores: Sequence[float]) -> Interval:
    """Of the mean of scores of rows from 0 to 1: Wilson's where each is 0 or 1, else a bootstrap over rows.

    Raises ValueError for no scores.
    """
    if not scores:
        raise ValueError("there are no scores to take an interval of")
    if set(scores) <= {0.0, 1.0}:
        found = stats.binomtest(int(sum(scores)), len(scores)).proportion_ci(0.95, method="wilson")
        return Interval(float(found.low), float(found.high))
    return _bootstrapped(scores)


def interval_of_difference(first: Sequence[float], second: Sequence[float]) -> Interval:
    """Of the mean of first minus second over the same rows, by a bootstrap over rows. Raises ValueError for other lengths.

    Where each score is 0 or 1 and only one of the two is ever right alone, resampling rows would never show the other side: the
    exact sign test over these rows decides whether 0 is inside.
    """
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    found = _bootstrapped(gaps)
    told = [gap for gap in gaps if gap]
    if told and {abs(gap) for gap in told} == {1.0}:
        p = stats.binomtest(sum(gap > 0 for gap in told), len(told), 0.5).pvalue
        if p >= 0.05:
            return Interval(min(found.low, 0.0), max(found.high, 0.0))
    return found


def _bootstrapped(values: Sequence[float]) -> Interval:
    array = np.asarray(values, dtype=np.float64)  # (rows,)
    if len(set(values)) == 1:
        return Interval(float(array[0]), float(array[0]))
    drawn = np.random.default_rng(0).integers(0, len(array), (_DRAWS, len(array)))  # (draws, rows)
    low, high = np.quantile(array[drawn].mean(axis=1), (0.025, 0.975))
    return Interval(float(low), float(high))
