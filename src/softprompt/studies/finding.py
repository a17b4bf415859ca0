"""What a study found, in one sentence that is true."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from softprompt.catalogue import METHODS
from softprompt.concerns import FEW_ROWS
from softprompt.studies.comparisons import comparisons
from softprompt.studies.results import StudyResults

_SHARES = ("accuracy", "macro_f1", "micro_f1", "f1", "exact_match", "harmonic_mean")  # printed in percent
_ESTABLISHED = 0.05  # p, corrected for the number of comparisons


def finding(results: StudyResults) -> tuple[str, str]:
    """The finding, and what else a reader must know of it.

    The finding names the best two with their scores, whether a difference between them is established, and on how much that
    rests; for several metrics there is a sentence on each. The remark says whether a baseline or the commonest label wins.
    """
    found = {metric: _found(results, metric) for metric in results.metrics}
    if len(found) == 1:
        return next(iter(found.values()))
    sentences = " ".join(f"{metric}: {sentence}" for metric, (sentence, _) in found.items())
    return sentences, " ".join(remark for _, remark in found.values() if remark)


def few_rows(results: StudyResults) -> str:
    """A sentence if scores rest on fewer than 50 rows; else empty."""
    pairs = [(condition, data) for condition in results.conditions for data in results.data]
    counts = {pair: count for pair in pairs if (count := results.row_count(*pair))}
    least = min(counts, key=counts.__getitem__, default=None)
    if least is None or counts[least] >= FEW_ROWS:
        return ""
    widest = max(
        (
            summary.high - summary.low
            for line in results.lines
            if (summary := results.summary(line, *least))
            and summary.low is not None
            and summary.high is not None
        ),
        default=None,
    )
    wide = "" if widest is None else f": an interval below is {100 * widest:.0f} points wide"
    return f"{counts[least]} {_kind(results)}rows are few{wide}. Give 50 or more before you choose by these scores."


def in_points(value: float, metric: str) -> str:
    """ "81.2" for a share, "0.812" for another score."""
    return f"{100 * value:.1f}" if metric in _SHARES else f"{value:.3f}"


def _found(results: StudyResults, metric: str) -> tuple[str, str]:
    means = {line: mean for line in results.lines if (mean := results.mean(line, metric)) is not None}
    if not means:
        return "Nothing is found yet: no option has a score under every condition.", ""
    order = sorted(means, key=means.__getitem__, reverse=True)
    scores = [f"{line} {in_points(means[line], metric)}" for line in order]
    said = ", ".join(scores[:2])
    if len(order) > 2:
        said += f", {len(order) - 2} more down to {in_points(means[order[-1]], metric)}"
    verdict = f"; {_verdict(results, metric, order)}" if len(order) > 1 else ""
    remarks = (_baseline(results, order), _chance(results, metric, means[order[0]]))
    return f"{said}{verdict}: {_basis(results, metric)}.", " ".join(filter(None, remarks))


def _verdict(results: StudyResults, metric: str, order: Sequence[str]) -> str:
    first, second = order[:2]
    for found in comparisons(results):
        is_theirs = found.metric == metric and {found.first, found.second} == {first, second}
        if is_theirs and found.holm < _ESTABLISHED:
            return f"the difference is established (p = {found.holm:.2g}, corrected)"
    return f"no difference {'between the first two ' if len(order) > 2 else ''}is established"


def _basis(results: StudyResults, metric: str) -> str:
    """The numbers of seeds and rows that the scores rest on, and what is averaged."""
    places = [
        (condition, data)
        for condition in results.conditions
        for data in results.data
        if results.metric(condition) == metric
        and any(results.scores(line, condition, data) for line in results.lines)
    ]
    trained = [line for line in results.lines if results.trains(line)]
    seeds = {
        len(found) for line in trained for place in places if (found := results.scores(line, *place))
    } or {1}
    rows = {count for place in places if (count := results.row_count(*place))}
    conditions, data = (list(dict.fromkeys(part)) for part in zip(*places, strict=True))
    parts = [f"{_span(sorted(seeds))} seed{'s' * (max(seeds) != 1)}"]
    if rows:
        kind = f"{data[0]} " if len(data) == 1 else ""
        parts.append(f"{_span(sorted(rows))} {kind}row{'s' * (max(rows) != 1)}")
    averaged = [f"{len(conditions)} conditions"] if len(conditions) > 1 else []
    averaged += [" and ".join(data)] if len(data) > 1 else []
    return ", ".join(parts) + (f", mean over {' and over '.join(averaged)}" if averaged else "")


def _baseline(results: StudyResults, order: Sequence[str]) -> str:
    prompts = [line for line in order if not _is_baseline(results, line)]
    if not prompts or prompts[0] == order[0]:
        return ""
    return f"{order[0]} is a baseline: no prompt has a higher score."


def _chance(results: StudyResults, metric: str, best: float) -> str:
    if metric != "accuracy":
        return ""
    found = [
        share
        for condition in results.conditions
        for data in results.data
        if (share := results.majority(condition, data)) is not None
    ]
    if not found or best > statistics.fmean(found):
        return ""
    return f"Always giving the commonest label scores {in_points(statistics.fmean(found), metric)}, which nothing here exceeds."


def _is_baseline(results: StudyResults, line: str) -> bool:
    names = {str(result.run.values["method"]["name"]) for result in results.of(line)}
    return all(METHODS.get(name, "").startswith("softprompt.baselines.") for name in names)


def _kind(results: StudyResults) -> str:
    return f"{results.data[0]} " if len(results.data) == 1 else ""


def _span(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
