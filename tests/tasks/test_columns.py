"""Values of rows: what is missing, what is no text, and labels that are almost known."""

from __future__ import annotations

import decimal
import unicodedata
from typing import Any

import numpy
import pandas
import pytest
import torch

from softprompt import Regression, TextClassification

TASK = TextClassification("{text} it was", labels={"neg": " bad", "pos": " good"})


@pytest.mark.parametrize(
    "value", [None, float("nan"), numpy.float32("nan"), decimal.Decimal("NaN"), pandas.NA, pandas.NaT]
)
def test_what_is_missing_is_refused_however_it_is_written(value: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'text' is .* fill or drop such rows"):
        TASK.render({"text": value}, answer=False)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (2.5, "2.5"),
        (True, "True"),
        (torch.tensor(3), "3"),
        (numpy.int64(4), "4"),
        (b"caf\xc3\xa9", "café"),
        (pandas.Timestamp(2026, 12, 1), "2026-12-01 00:00:00"),
        ("", ""),
    ],
)
def test_what_has_words_is_text(value: Any, text: str) -> None:
    assert TASK.render({"text": value}, answer=False) == f"{text} it was"


@pytest.mark.parametrize(
    "value",
    [[{"role": "user"}], {"text": "a"}, ("a",), {"a"}, object(), torch.zeros(2), numpy.zeros((1, 2))],
    ids=["list", "dict", "tuple", "set", "object", "tensor", "array"],
)
def test_what_has_none_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'text' holds a .*expected text"):
        TASK.render({"text": value}, answer=False)


def test_text_that_no_tokenizer_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="column 'text' holds half of a character"):
        TASK.render({"text": "a \ud83d film"}, answer=False)
    with pytest.raises(ValueError, match="bytes that are not UTF-8"):
        TASK.render({"text": b"\xff"}, answer=False)


@pytest.mark.parametrize(
    ("found", "labels", "meant"),
    [
        ("Positive", ("negative", "positive"), "positive"),
        (" positive", ("negative", "positive"), "positive"),
        (1.0, ("0", "1"), "1"),
        (True, ("false", "true"), "true"),
        ("other", ("negative", "positive"), "..."),
    ],
)
def test_an_unknown_label_is_said_with_the_one_that_it_is(
    found: Any, labels: tuple[str, str], meant: str
) -> None:
    task = TextClassification("{text}", labels={label: f" {label}" for label in labels})
    with pytest.raises(ValueError, match=rf"label_values=\{{.*: '{meant}'\}}"):
        task.read_label({"text": "x", "label": found})


def test_accents_that_are_written_otherwise_are_said() -> None:
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    task = TextClassification("{text}", labels={one: " good", "the": " bad"})
    with pytest.raises(ValueError, match="normalise both to NFC"):
        task.read_label({"text": "x", "label": other})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "none", float("inf")])
def test_a_value_that_is_no_finite_number_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a"):
        Regression("{text}").read_value({"text": "a", "value": value})
