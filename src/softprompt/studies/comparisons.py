"""Paired comparisons of a study's lines over the seeds that both have."""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from dataclasses import dataclass

from softprompt.studies.results import StudyResults
from softprompt.studies.statistics import Summary, holm, sign_flip_p, summarize


@dataclass(frozen=True)
class Comparison:
    """Two lines over the seeds that both have.

    difference  mean score of `first` minus that of `second`
    p, holm     of the paired sign-flip test, alone and corrected for the number of comparisons
    """

    first: str
    second: str
    metric: str
    difference: Summary
    p: float
    holm: float


def comparisons(results: StudyResults) -> list[Comparison]:
    """Every pair of lines that have runs in common, for each metric by itself.

    A pair is a seed on one task and its training rows: differences over other conditions (such as steps) and over data sets on
    which the same prompt is tested are averaged within it, since they are not independent.
    """
    pairs = []
    for metric, (first, second) in itertools.product(
        results.metrics, itertools.combinations(results.lines, 2)
    ):
        blocks: dict[tuple[str, int], list[float]] = defaultdict(list)
        for condition, data in itertools.product(results.conditions, results.data):
            if results.metric(condition) != metric:
                continue
            ours, theirs = _for_each_seed(results, first, second, condition, data)
            for seed in ours.keys() & theirs.keys():
                blocks[results.problem(condition), seed].append(ours[seed] - theirs[seed])
        if blocks:
            differences = [statistics.fmean(found) for _, found in sorted(blocks.items())]
            pairs.append((first, second, metric, differences))
    p_values = [sign_flip_p(differences) for *_, differences in pairs]
    return [
        Comparison(first, second, metric, summarize(differences), p, corrected)
        for (first, second, metric, differences), p, corrected in zip(
            pairs, p_values, holm(p_values), strict=True
        )
    ]


def _for_each_seed(
    results: StudyResults, first: str, second: str, condition: str, data: str
) -> tuple[dict[int, float], dict[int, float]]:
    """Scores by seed. A method that trains nothing and has one seed is paired with every seed of the other."""
    ours, theirs = results.scores(first, condition, data), results.scores(second, condition, data)
    if len(ours) == 1 and not results.trains(first):
        ours = dict.fromkeys(theirs, *ours.values()) if theirs else ours
    if len(theirs) == 1 and not results.trains(second):
        theirs = dict.fromkeys(ours, *theirs.values()) if ours else theirs
    return ours, theirs
