from __future__ import annotations

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
)

from softprompt.tasks.metrics import classification_metrics, generation_metrics, normalise_text


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_class_metrics_equal_torchmetrics(classes):
    gold, predicted = torch.randint(classes, (2, 40)).unbind()
    labels = [f"label {k}" for k in range(classes)]
    metrics = classification_metrics([labels[k] for k in gold], [labels[k] for k in predicted], labels)
    pair = (predicted, gold, classes)
    assert metrics["accuracy"] == pytest.approx(float(multiclass_accuracy(*pair, average="micro")))
    assert metrics["macro_f1"] == pytest.approx(float(multiclass_f1_score(*pair, average="macro")), abs=1e-6)
    assert metrics["mcc"] == pytest.approx(float(multiclass_matthews_corrcoef(*pair)), abs=1e-6)


def test_a_constant_answer_has_the_majority_accuracy_and_no_correlation():
    metrics = classification_metrics(list("aabc"), list("aaaa"), list("abcd"))
    assert metrics["accuracy"] == metrics["majority_accuracy"] == 0.5
    assert metrics["mcc"] == 0.0
    assert metrics["predicted"] == {"a": 4, "b": 0, "c": 0, "d": 0}
    assert metrics["macro_f1"] == pytest.approx((2 / 3) / 3)  # `d` does not occur


def test_metrics_refuse_pairs_that_do_not_pair():
    with pytest.raises(ValueError, match="1 predictions for 2 rows"):
        classification_metrics(["a", "b"], ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no rows"):
        classification_metrics([], [], ["a", "b"])
    with pytest.raises(ValueError, match="'c' is not one of"):
        classification_metrics(["a"], ["c"], ["a", "b"])
    with pytest.raises(ValueError, match="no rows"):
        generation_metrics([], [])


def test_exact_match_looks_past_case_and_white_space_only():
    assert normalise_text("  The\n CAT\t") == "the cat"
    assert normalise_text("cat.") != normalise_text("cat")


def test_text_metrics_of_equal_and_of_disjoint_texts():
    same = generation_metrics(["the cat sat on the mat"], ["the cat sat on the mat"])
    assert same["exact_match"] == 1.0
    assert same["rouge_l"] == 1.0
    assert same["bleu"] == pytest.approx(100)
    other = generation_metrics(["dog", ""], ["the cat sat", "word"])
    assert other["exact_match"] == other["rouge_l"] == other["bleu"] == 0.0


def test_rouge_is_the_longest_common_subsequence_of_words_in_any_script():
    # LCS "a c" of 3 and 2 words: precision 1, recall 2/3.
    assert generation_metrics(["a c"], ["a b c"])["rouge_l"] == pytest.approx(0.8)
    assert generation_metrics(["η γάτα"], ["η γάτα"])["rouge_l"] == 1.0
