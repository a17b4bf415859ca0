"""Words that are inferred for labels."""

from __future__ import annotations

import pytest

from softprompt.tasks.label_words import infer_words


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["negative", "positive"], [" negative", " positive"]),
        (["NEG", "POS"], [" neg", " pos"]),
        (["OrderStatus", "order_cancel"], [" order status", " order cancel"]),
        (["LABEL_good", "LABEL_bad"], [" good", " bad"]),
        (["topic:USA", "topic:sports"], [" USA", " sports"]),
        (["0", "1"], [" A", " B"]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [" A", " B", " C"]),
        (["A12", "B7"], [" A", " B"]),
        (["yes", "no"], [" yes", " no"]),
        (["Good", "good"], [" A", " B"]),
    ],
)
def test_names_become_words(labels: list[str], words: list[str]) -> None:
    assert list(infer_words(labels).words.values()) == words


def test_a_column_says_what_0_and_1_mean() -> None:
    found = infer_words(["0", "1"], "is_spam")
    assert found.words == {"0": " not spam", "1": " spam"}
    assert found.guessed
    assert not infer_words(["cat", "dog"], "label").guessed
