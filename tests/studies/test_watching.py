"""What is noted of a run: the library's warnings, as its `concerns`."""

from __future__ import annotations

import warnings

import pytest

from softprompt.concerns import warn_of
from softprompt.studies.watching import concerns_in


def noted() -> list[str]:
    """What is noted of work that warns at each of three batches, and once of something else."""
    concerns: list[str] = []
    with concerns_in(concerns):
        for _ in range(3):
            warn_of(["no layer reaches back"])
        warn_of(["every row was given the label 'neg'"])
        warnings.warn("a library's own", FutureWarning, stacklevel=1)
    return concerns


def test_a_warning_of_every_batch_is_noted_once_and_those_of_others_go_their_way() -> None:
    with pytest.warns(FutureWarning, match="a library's own"):
        concerns = noted()
    assert concerns == ["no layer reaches back", "every row was given the label 'neg'"]
