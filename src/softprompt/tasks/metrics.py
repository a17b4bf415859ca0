"""Metrics of classes and of generated texts: plain functions over plain values."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any


def classification_metrics(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
    """Metrics over pairs of a right and a predicted label, both out of `labels`.

    accuracy           share of right predictions
    macro_f1           mean F1 over the labels that occur, as gold or as prediction (as in scikit-learn)
    mcc                multiclass Matthews correlation (Gorodkin 2004), 0 where gold or prediction is constant
    majority_accuracy  accuracy of always answering the most frequent label of these very rows
    confusion          gold label -> predicted label -> rows
    predicted          label -> how often it was predicted; a label with 0 deserves a look
    rows               how many rows

    Raises ValueError if there are no pairs, the lengths differ, or a label is not one of `labels`.
    """
    _check_lengths(gold, predicted)
    for label in {*gold, *predicted}:
        if label not in labels:
            raise ValueError(f"label {label!r} is not one of {list(labels)}")
    pairs = Counter(zip(gold, predicted, strict=True))
    golds, guesses = Counter(gold), Counter(predicted)
    n, correct = len(gold), sum(pairs[label, label] for label in labels)
    f1 = [2 * pairs[c, c] / (golds[c] + guesses[c]) for c in labels if golds[c] + guesses[c]]
    covariance = correct * n - sum(golds[c] * guesses[c] for c in labels)
    spread = (n**2 - sum(golds[c] ** 2 for c in labels)) * (n**2 - sum(guesses[c] ** 2 for c in labels))
    return {
        "accuracy": correct / n,
        "macro_f1": sum(f1) / len(f1),
        "mcc": covariance / math.sqrt(spread) if spread else 0.0,
        "majority_accuracy": max(golds.values()) / n,
        "rows": n,
        "predicted": {label: guesses[label] for label in labels},
        "confusion": {g: {p: pairs[g, p] for p in labels} for g in labels},
    }


def normalise_text(text: str) -> str:
    """Case folded, every run of white space one space, none at the ends."""
    return " ".join(text.casefold().split())


def generation_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Metrics over pairs of a generated text and its reference.

    exact_match  share of pairs equal after `normalise_text`; punctuation and articles count
    rouge_l      mean F-measure of ROUGE-L without stemming, 0 to 1; words are runs of letters and digits
    bleu         corpus BLEU of sacrebleu with its default tokeniser ("13a"), 0 to 100
    rows         how many rows

    Raises ValueError if there are no pairs or the lengths differ.
    """
    # Imported here: rouge_score brings nltk, a second of import time that only this function needs.
    import sacrebleu
    from rouge_score import rouge_scorer

    _check_lengths(references, predicted)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words())
    rouge = [scorer.score(r, p)["rougeL"].fmeasure for r, p in zip(references, predicted, strict=True)]
    exact = [normalise_text(r) == normalise_text(p) for r, p in zip(references, predicted, strict=True)]
    n = len(references)
    return {
        "exact_match": sum(exact) / n,
        "rouge_l": float(sum(rouge)) / n,
        "bleu": float(sacrebleu.corpus_bleu(list(predicted), [list(references)]).score),
        "rows": n,
    }


class _Words:
    """A tokeniser for rouge_score, whose own keeps a-z and 0-9 only: a Greek text would always score 0."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def _check_lengths(gold: Sequence[str], predicted: Sequence[str]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions for {len(gold)} rows; there must be one for each")
    if not gold:
        raise ValueError("no rows to evaluate")
