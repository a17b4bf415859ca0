"""Mean, spread, intervals and paired test of a few scores; the formulas are scipy's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_EXACT = 14  # pairs up to which every one of the 2^n flips is counted
_FLIPS = 20_000  # flips that are drawn beyond that
_DRAWS = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Summary:
    """Scores of one setting over its seeds.

    std   sample standard deviation; None: fewer than two scores
    low, high  95 % interval of the mean; None: nothing is known of it
    """

    mean: float
    std: float | None
    low: float | None
    high: float | None
    count: int


def summarize(values: Sequence[float]) -> Summary:
    """Differences or other values without bounds, with the interval by Student's t, which takes them for normal.

    Raises ValueError for no values.
    """
    summary = _spread(values)
    if summary.std is None:
        return summary
    reach = float(stats.t.ppf(0.975, summary.count - 1)) * summary.std / summary.count**0.5
    return Summary(summary.mean, summary.std, summary.mean - reach, summary.mean + reach, summary.count)


def summarize_scores(scores: Sequence[float], rows: int | None = None) -> Summary:
    """Scores of seeds, with an interval that stays within what scores can be.

    rows  the number of rows on which each score is the share of right answers; None: the scores are no such shares

    For one seed the interval is Wilson's. For several it is a bootstrap's: seeds are drawn with replacement, and then rows,
    which are the same for every seed, so that more seeds make no more rows; it is at least as wide as Wilson's for the mean.
    Where scores are no shares of rows, seeds alone are drawn, and one seed has no interval.
    Raises ValueError for no scores.
    """
    summary = _spread(scores)
    if rows is None and summary.std is None:
        return summary
    ends = [_bootstrap(scores, rows)] if summary.std is not None else []
    if rows is not None:
        ends.append(wilson(summary.mean, rows))
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return Summary(summary.mean, summary.std, min(low, summary.mean), max(high, summary.mean), summary.count)


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share of right answers on a number of rows."""
    found = stats.binomtest(round(share * rows), rows).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def sign_flip_p(differences: Sequence[float]) -> float:
    """How often the mean of paired differences is at least as far from 0 when each one's sign is tossed: two-sided p.

    Fisher's exact permutation test: it assumes nothing of the distribution but symmetry. Counted exactly up to 14 pairs, else
    over 20,000 draws with a fixed seed. With n pairs no p is below 2 / 2^n, which is 0.25 for 3.
    Raises ValueError for no pairs.
    """
    if not differences:
        raise ValueError("there are no pairs to compare")
    if len(differences) == 1 or not any(differences):
        return 1.0  # scipy wants two pairs
    found = stats.permutation_test(
        (np.asarray(differences, dtype=float),),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**_EXACT if len(differences) <= _EXACT else _FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(p_values) - rank)))
        corrected[i] = largest
    return corrected


def _spread(values: Sequence[float]) -> Summary:
    if not values:
        raise ValueError("there are no scores to summarize")
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(statistics.fmean(values), std, None, None, len(values))


def _bootstrap(scores: Sequence[float], rows: int | None) -> tuple[float, float]:
    dice = np.random.default_rng(0)
    means = dice.choice(np.asarray(scores, dtype=float), (_DRAWS, len(scores))).mean(axis=1)
    if rows is not None:
        means = dice.binomial(rows, means.clip(0, 1)) / rows
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
