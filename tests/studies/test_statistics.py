"""Numbers against tables that were printed before there were programs."""

from __future__ import annotations

import itertools
import statistics

import pytest

from softprompt.studies.results import pareto_front
from softprompt.studies.statistics import holm, sign_flip_p, summarize, t_inside, t_quantile


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [
        (1, 12.706),
        (2, 4.303),
        (3, 3.182),
        (4, 2.776),
        (5, 2.571),
        (9, 2.262),
        (10, 2.228),
        (30, 2.042),
        (120, 1.980),
    ],
)
def test_the_t_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=6e-4)
    assert t_inside(expected, freedom) == pytest.approx(0.95, abs=1e-4)


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
