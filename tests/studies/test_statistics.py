"""Numbers against tables that were printed before there were programs."""

from __future__ import annotations

import itertools
import statistics

import pytest

from softprompt.studies.results import pareto_front
from softprompt.studies.statistics import holm, sign_flip_p, summarize, summarize_scores, wilson


def test_an_interval_of_scores_stays_within_what_scores_can_be() -> None:
    for scores in ([1.0], [0.0], [1.0, 1.0, 1.0], [0.05, 0.2, 0.0], [0.5, 1.0]):
        found = summarize_scores(scores, rows=12)
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.mean <= found.high <= 1
        assert found.high - found.low > 0.2  # twelve rows say little, whatever the seeds agree on
    assert wilson(0.5, 10) == pytest.approx(
        (0.2366, 0.7634), abs=1e-4
    )  # Newcombe 1998 has the method's formula
    one = summarize_scores([0.5], rows=10)
    assert (one.std, one.low, one.high) == (None, *wilson(0.5, 10))


def test_seeds_make_no_rows() -> None:
    few, many = (summarize_scores([0.5] * seeds, rows=100) for seeds in (2, 40))
    for summary in (few, many):
        assert summary.high - summary.low == pytest.approx(2 * 1.96 * 0.05, abs=0.02)


def test_scores_that_are_no_shares_are_drawn_over_seeds_alone() -> None:
    assert summarize_scores([0.3]).low is None
    found = summarize_scores([-0.2, 0.4, 0.1])
    assert (found.low, found.high) == pytest.approx((-0.2, 0.4))
    assert summarize_scores([-0.2, 0.4, 0.1]) == found  # drawn with a fixed seed


def test_the_interval_of_three_scores_is_as_wide_as_it_must_be() -> None:
    summary = summarize([0.8, 0.9, 0.85])
    assert summary.mean == pytest.approx(0.85)
    assert summary.std == pytest.approx(statistics.stdev([0.8, 0.9, 0.85]))
    assert summary.high - summary.mean == pytest.approx(4.30265 * 0.05 / 3**0.5, rel=1e-5)
    assert summarize([0.5]).low is None
    with pytest.raises(ValueError, match="no scores"):
        summarize([])


def test_the_paired_test_counts_every_flip() -> None:
    assert sign_flip_p([1.0, 2.0, 3.0]) == pytest.approx(2 / 8)
    assert sign_flip_p([0.0, 0.0]) == 1
    differences = [0.3, -0.1, 0.2, 0.25, -0.05]
    extreme = sum(
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= abs(sum(differences)) - 1e-12
        for signs in itertools.product((1, -1), repeat=5)
    )
    assert sign_flip_p(differences) == pytest.approx(extreme / 32)
    many = [0.1] * 10 + [-0.02] * 10
    assert sign_flip_p(many) == sign_flip_p(many) < 0.02  # drawn, with a fixed seed
    with pytest.raises(ValueError, match="no pairs"):
        sign_flip_p([])


def test_holm_corrects_for_the_number_of_comparisons() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_pareto_front_is_what_nothing_betters() -> None:
    points = {"a": (0.0, 0.5), "b": (10.0, 0.7), "c": (20.0, 0.6), "d": (30.0, 0.9), "e": (30.0, 0.8)}
    assert pareto_front(points) == {"a", "b", "d"}
