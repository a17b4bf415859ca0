"""Metrics of classes, numbers, tags, spans and generated texts. All are plain functions of plain values."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

OUTSIDE = "O"
"""The tag of words that are in no entity."""
ENTITY_MARKS = ("B", "I", "E", "S", "L", "U")
"""The marks that tags of entities begin with: begin, inside, end and single (IOBES), or last and unit (BILOU)."""
_FIRST, _LAST = ("B", "S", "U"), ("E", "S", "L", "U")


def classification_metrics(
    gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]
) -> dict[str, Any]:
    """Return metrics of pairs of a right and a predicted label, both from `labels`.

    accuracy           share of right predictions
    macro_f1           mean F1 over the labels that occur, as gold or as prediction (as in scikit-learn)
    mcc                multiclass Matthews correlation (Gorodkin 2004); 0 if all right or all predicted labels are equal
    majority_accuracy  the accuracy of always giving the most frequent label of these rows
    confusion          gold label -> predicted label -> rows
    predicted          label -> how often it was predicted
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


def regression_metrics(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, Any]:
    """Return metrics of pairs of a right and a predicted number.

    pearson   linear correlation; 0 if all right or all predicted numbers are equal
    spearman  the linear correlation of the ranks; equal numbers share the mean of their ranks
    mse       mean squared error
    mean_mse  the mean squared error of always giving the mean of these rows
    rows      how many rows

    Raises ValueError if there are no pairs or the lengths differ.
    """
    _check_lengths(gold, predicted)
    n, mean = len(gold), sum(gold) / len(gold)
    return {
        "pearson": _correlation(gold, predicted),
        "spearman": _correlation(_ranks(gold), _ranks(predicted)),
        "mse": sum((g - p) ** 2 for g, p in zip(gold, predicted, strict=True)) / n,
        "mean_mse": sum((g - mean) ** 2 for g in gold) / n,
        "rows": n,
    }


def _correlation(a: Sequence[float], b: Sequence[float]) -> float:
    a = [x - sum(a) / len(a) for x in a]
    b = [x - sum(b) / len(b) for x in b]
    spread = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / spread if spread else 0.0


def _ranks(values: Sequence[float]) -> list[float]:
    from scipy.stats import rankdata

    return [float(rank) for rank in rankdata(values)]


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return the entities of a row of tags: type, first word, and one past the last word.

    Tags are IOB, IOBES or BILOU, read as seqeval reads them by default. An entity begins at a B, S or U, and at an I, E or L
    that does not continue an entity of its type (IOB1, and predictions that forget the B). It ends with an E, S, L or U, and
    before a word that does not continue it.
    """
    found: set[tuple[str, int, int]] = set()
    kind, start = "", 0
    for i, tag in enumerate([*tags, OUTSIDE]):
        mark, _, name = tag.partition("-")
        inside = name if mark in ENTITY_MARKS else ""
        if kind and (mark in _FIRST or inside != kind):
            found.add((kind, start, i))
            kind = ""
        if inside and not kind:
            kind, start = inside, i
        if kind and mark in _LAST:
            found.add((kind, start, i + 1))
            kind = ""
    return found


def tag_metrics(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return metrics of rows of right and predicted tags, as seqeval counts them.

    f1                 F1 of whole entities over all rows together (micro): type and both ends must be right
    precision, recall  of whole entities. If the tags name no entities (parts of speech), all three are the words' accuracy
    accuracy           share of words with the right tag
    majority_accuracy  the accuracy of always giving the most frequent tag of these rows
    by_type            entity type -> its f1
    predicted          tag -> how many words were given it, for the tags that occur as gold or as prediction
    rows, words        how many there are

    Raises ValueError if there are no words, or a row has another number of tags than of words.
    """
    _check_lengths(gold, predicted)
    for i, (tags, guesses) in enumerate(zip(gold, predicted, strict=True)):
        if len(tags) != len(guesses):
            raise ValueError(f"row {i} has {len(tags)} words and {len(guesses)} predicted tags")
    words = [pair for rows in zip(gold, predicted, strict=True) for pair in zip(*rows, strict=True)]
    if not words:
        raise ValueError("no words to evaluate")
    right = {(i, *entity) for i, tags in enumerate(gold) for entity in entities(tags)}
    guessed = {(i, *entity) for i, tags in enumerate(predicted) for entity in entities(tags)}
    accuracy = sum(g == p for g, p in words) / len(words)
    kinds = sorted({entity[1] for entity in right | guessed})
    scores = {"f1": accuracy, "precision": accuracy, "recall": accuracy}
    if kinds:
        hits = len(right & guessed)
        scores = {
            "f1": 2 * hits / (len(right) + len(guessed)),
            "precision": hits / len(guessed) if guessed else 0.0,
            "recall": hits / len(right) if right else 0.0,
        }
    golds, answers = Counter(g for g, _ in words), Counter(p for _, p in words)
    return scores | {
        "accuracy": accuracy,
        "majority_accuracy": max(golds.values()) / len(words),
        "by_type": {
            kind: 2
            * sum(e[1] == kind for e in right & guessed)
            / sum((e[1] == kind) for group in (right, guessed) for e in group)
            for kind in kinds
        },
        "predicted": {tag: answers[tag] for tag in sorted(golds | answers)},
        "rows": len(gold),
        "words": len(words),
    }


def normalise_answer(text: str) -> str:
    """Normalise an answer as SQuAD does: lower case, no ASCII punctuation, no English articles, single spaces."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def span_metrics(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the metrics of SQuAD: each predicted answer is compared with the right ones of its row, and the best counts.

    exact_match  share of answers that equal a right one after `normalise_answer`
    f1           mean F1 of the words that an answer shares with a right one, after `normalise_answer`
    rows         how many rows

    Raises ValueError if there are no rows, the lengths differ, or a row has no right answer.
    """
    _check_lengths(references, predicted)
    if not all(references):
        raise ValueError("a row has no right answer to compare with")
    exact = f1 = 0.0
    for guess, right in zip(predicted, references, strict=True):
        exact += max(normalise_answer(guess) == normalise_answer(text) for text in right)
        f1 += max(_shared_words(normalise_answer(guess).split(), normalise_answer(t).split()) for t in right)
    n = len(references)
    return {"exact_match": exact / n, "f1": f1 / n, "rows": n}


def _shared_words(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b:
        return float(a == b)
    return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b))


def normalise_text(text: str) -> str:
    """Fold case, replace every run of white space with one space, and strip both ends."""
    return " ".join(text.casefold().split())


def generation_metrics(predicted: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Return metrics of pairs of a generated text and its reference.

    exact_match  share of pairs that are equal after `normalise_text`; punctuation and articles count
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


def _check_lengths(gold: Sequence[Any], predicted: Sequence[Any]) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(predicted)} predictions for {len(gold)} rows; there must be one for each")
    if not gold:
        raise ValueError("no rows to evaluate")
