"""Metrics of numbers, tags and spans against values computed by hand and by torchmetrics."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from torchmetrics.functional.regression import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.text import squad

from softprompt.tasks.metrics import (
    entities,
    normalise_answer,
    regression_metrics,
    span_metrics,
    tag_metrics,
)


def test_regression_metrics_of_four_pairs() -> None:
    found = regression_metrics([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 2.0, 8.0])
    assert found["mse"] == pytest.approx((0 + 1 + 1 + 16) / 4)
    assert found["mean_mse"] == pytest.approx(5 / 4)
    # Deviations -1.5 -.5 .5 1.5 and -2 -2 -1 5: 11 / sqrt(5 * 34); ranks 1 2 3 4 and 1.5 1.5 3 4.
    assert found["pearson"] == pytest.approx(11 / (5 * 34) ** 0.5)
    assert found["spearman"] == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert found["rows"] == 4


def test_correlations_equal_torchmetrics() -> None:
    gold, predicted = torch.randint(0, 8, (2, 30), generator=torch.Generator().manual_seed(0)).double()
    found = regression_metrics(gold.tolist(), predicted.tolist())
    assert found["pearson"] == pytest.approx(pearson_corrcoef(predicted, gold).item(), abs=1e-6)
    assert found["spearman"] == pytest.approx(spearman_corrcoef(predicted, gold).item(), abs=1e-6)


def test_a_constant_number_correlates_with_nothing() -> None:
    found = regression_metrics([1.0, 2.0], [3.0, 3.0])
    assert found["pearson"] == found["spearman"] == 0.0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-PER I-PER O B-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("B-PER I-LOC", {("PER", 0, 1), ("LOC", 1, 2)}),
        ("I-PER I-PER O I-LOC", {("PER", 0, 2), ("LOC", 3, 4)}),  # IOB1
        ("NOUN VERB", set()),
        ("B-A-B I-A-B", {("A-B", 0, 2)}),
        ("S-PER B-LOC I-LOC E-LOC O", {("PER", 0, 1), ("LOC", 1, 4)}),  # IOBES
        ("U-PER B-LOC I-LOC L-LOC O", {("PER", 0, 1), ("LOC", 1, 4)}),  # BILOU
        ("B-PER E-PER E-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("I-PER S-PER I-PER E-LOC", {("PER", 0, 1), ("PER", 1, 2), ("PER", 2, 3), ("LOC", 3, 4)}),
        ("S-NOUN-", {("NOUN-", 0, 1)}),
        ("X-PER M-PER", set()),
    ],
)
def test_entities_of_a_row(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def seqeval_s(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """seqeval 1.2's `get_entities`, rule by rule."""
    found, start, before, kind_before = set(), 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        ends = before in ("E", "S") or (before in ("B", "I") and mark in ("B", "S", "O"))
        if ends or (before != "O" and kind != kind_before):
            found.add((kind_before, start, i))
        begins = mark in ("B", "S") or (before in ("E", "S", "O") and mark in ("E", "I"))
        if begins or (mark != "O" and kind != kind_before):
            start = i
        before, kind_before = mark, kind
    return found


@pytest.mark.parametrize("last", ["ES", "LU"])
def test_entities_of_every_row_of_four_tags_are_those_of_seqeval(last: str) -> None:
    known = ["O", *(f"{mark}-{kind}" for mark in "BIES" for kind in "XY")]
    for tags in itertools.product(known, repeat=4):
        renamed = [tag.replace("E-", f"{last[0]}-").replace("S-", f"{last[1]}-") for tag in tags]
        assert entities(renamed) == seqeval_s(tags), tags


def test_an_entity_counts_only_whole() -> None:
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG", "O"]]
    predicted = [["B-PER", "O", "O", "B-LOC"], ["O", "B-LOC", "O"]]
    found = tag_metrics(gold, predicted)
    # Right: LOC of row 0. Three entities on either side.
    assert found["precision"] == found["recall"] == found["f1"] == pytest.approx(1 / 3)
    assert found["accuracy"] == pytest.approx(5 / 7)
    assert found["majority_accuracy"] == pytest.approx(3 / 7)
    assert found["by_type"] == {"LOC": pytest.approx(2 / 3), "ORG": 0.0, "PER": 0.0}
    assert found["predicted"] == {"B-LOC": 2, "B-ORG": 0, "B-PER": 1, "I-PER": 0, "O": 4}
    assert (found["rows"], found["words"]) == (2, 7)


def test_the_same_words_in_another_row_are_another_entity() -> None:
    assert tag_metrics([["B-A"], ["O"]], [["O"], ["B-A"]])["f1"] == 0.0


def test_parts_of_speech_are_judged_word_by_word() -> None:
    assert tag_metrics([["NOUN", "VERB"]], [["NOUN", "NOUN"]])["f1"] == 0.5


def test_tags_and_words_must_be_as_many() -> None:
    with pytest.raises(ValueError, match="row 0 has 2 words and 1 predicted tags"):
        tag_metrics([["O", "O"]], [["O"]])
    with pytest.raises(ValueError, match="no words"):
        tag_metrics([[]], [[]])


def test_answers_are_normalised_as_in_squad() -> None:
    assert normalise_answer("  The Eiffel-Tower,\n in a PARIS. ") == "eiffeltower in paris"
    assert normalise_answer("another theme") == "another theme"


def test_span_metrics_take_the_best_reference() -> None:
    found = span_metrics(["the cat sat", "red"], [["dog", "cat"], ["red"]])
    assert found["exact_match"] == 0.5
    assert found["f1"] == pytest.approx((2 * 1 / (2 + 1) + 1) / 2)
    assert span_metrics(["the"], [["a"]])["f1"] == 1.0  # nothing is left of either
    assert span_metrics(["the"], [["cat"]])["f1"] == 0.0


def test_span_metrics_equal_torchmetrics() -> None:
    predicted = ["the black cat", "1,000 men", "Rome", "in the house of a king"]
    references = [["A black cat!", "cat"], ["1000"], ["Paris", "Lyon"], ["the king's house", "house"]]
    expected = squad(
        [{"prediction_text": text, "id": str(i)} for i, text in enumerate(predicted)],
        [
            {"answers": {"answer_start": [0] * len(texts), "text": texts}, "id": str(i)}
            for i, texts in enumerate(references)
        ],
    )
    found = span_metrics(predicted, references)
    assert 100 * found["exact_match"] == pytest.approx(expected["exact_match"].item())
    assert 100 * found["f1"] == pytest.approx(expected["f1"].item(), abs=1e-4)
