"""Sentences about doubtful results. All of them are written here.

`fit`, `fit_many` and `TunedPrompt.evaluate` warn of them, the command line shows these warnings, and a study writes them into
the facts of each run. Each function takes results and returns sentences, usually none.
"""

from __future__ import annotations

import os
import statistics
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.errors import SoftpromptWarning

_SHORTEST_JUDGED_RUN = 20  # steps: below it a tenth of the run is one batch, and says nothing
FEW_ROWS = 50
"""Rows below which a score is told with a warning."""
_TRY = "try more steps or another learning_rate"
_PACKAGE = str(Path(__file__).parent) + os.sep


def warn_of(sentences: Iterable[str]) -> None:
    """Warn of each sentence with SoftpromptWarning, at the line of the user's code that called into this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    for sentence in sentences:
        warnings.warn(sentence, SoftpromptWarning, stacklevel=level)


def nothing_learned(losses: Sequence[float], gradient_norms: Sequence[float]) -> str | None:
    """Return a sentence if every gradient was zero or the training loss did not fall.

    losses, gradient_norms: one per step. The loss is judged by the medians of the first and the last tenth of the steps, and
    only if there are 20 steps or more.
    """
    if gradient_norms and max(gradient_norms) == 0:
        return (
            "every gradient was zero, so nothing was trained: does the loss depend on the trained tensors? "
            "A prompt that starts at zero behind a gate of zero never moves"
        )
    if len(losses) >= _SHORTEST_JUDGED_RUN:
        tenth = len(losses) // 10
        first, last = statistics.median(losses[:tenth]), statistics.median(losses[-tenth:])
        if last >= first:
            return (
                f"the training loss did not fall: its median was {first:.4g} over the first {tenth} steps "
                f"and {last:.4g} over the last {tenth}. Try another learning_rate (ten times more or less), "
                "or more steps"
            )
    return None


def unseen_labels(
    labels: Iterable[str], seen: set[str], *, unit: str = "row", kind: str = "label"
) -> list[str]:
    """Return a sentence if no training row (the `unit`) has some of the labels (the `kind`)."""
    missing = [label for label in labels if label not in seen]
    return [f"no training {unit} has the {kind}s {missing}: they cannot be learned"] if missing else []


def class_concerns(
    metrics: Mapping[str, Any],
    part: str = "",
    *,
    trained: bool = False,
    unit: str = "row",
    kind: str = "label",
) -> list[str]:
    """Return sentences if all rows were given one label, if predictions are no better than that, or if labels are left out.

    Arguments:
        metrics: those of `classification_metrics` or `tag_metrics`; other metrics raise no doubt
        part: the name of the rows, such as "validation"; empty: they have none
        trained: whether the metrics follow a training, so that the sentences advise how to train better
        unit: what is given a label
        kind: what the label is called
    """
    counts = metrics.get("predicted", {})
    used = [label for label, count in counts.items() if count]
    accuracy, majority = metrics.get("accuracy"), metrics.get("majority_accuracy")
    found = []
    if majority == 1:
        pass  # all rows have one label: there is nothing to tell apart
    elif len(used) == 1:
        remedy = f": nothing but the majority was learned; {_TRY}" if trained else ""
        return [f"every {_named(part, unit)} was given the {kind} {used[0]!r}{remedy}"]
    elif accuracy is not None and majority is not None and accuracy <= majority:
        remedy = f"; {_TRY}" if trained else ""
        found.append(
            f"{_named(part, 'accuracy')} {accuracy:.4f} is no better than always giving the most frequent {kind},"
            f" {majority:.4f}{remedy}"
        )
    answered = {label for label, row in metrics.get("confusion", {}).items() if any(row.values())}
    if missed := [label for label, count in counts.items() if not count and label in answered]:
        found.append(f"no {_named(part, unit)} was given the {kind}s {missed}, which the data have")
    return found


def guessed_words(words: Mapping[str, str], reason: str) -> str:
    """Return the sentence about words of labels that may say something else than the labels mean."""
    return f"the words of the labels are a guess, {dict(words)} ({reason}): give labels with their words, {{label: word}}"


def number_concerns(metrics: Mapping[str, Any], part: str = "", *, trained: bool = False) -> list[str]:
    """Return a sentence if predicted numbers are no better than the mean. `class_concerns` explains the arguments."""
    if not metrics or metrics["mse"] < metrics["mean_mse"] or metrics["mean_mse"] == 0:
        return []
    remedy = f"; {_TRY}" if trained else ""
    return [f"the {_named(part, 'error')} is not below that of always answering the mean{remedy}"]


def span_concerns(metrics: Mapping[str, Any], part: str = "", *, trained: bool = False) -> list[str]:
    """Return a sentence if no answer shares a word with a right one. `class_concerns` explains the arguments."""
    if not metrics or metrics["f1"]:
        return []
    remedy = f"; {_TRY}" if trained else ""
    asked = f" to the {part} rows" if part else ""
    return [f"no predicted answer{asked} shares a word with a right one{remedy}"]


def value_concerns(values: Sequence[float], low: float, high: float) -> list[str]:
    """Return sentences if training values of a regression lie outside of its range, or are all equal."""
    found = []
    if outside := sum(not low <= value <= high for value in values):
        found.append(
            f"{outside} of {len(values)} training values lie outside of {low} to {high}: set low and high"
        )
    if len(set(values)) == 1:
        found.append(f"every training row has the value {values[0]}: there is nothing to learn")
    return found


def cut_off_answer(stride: int | None) -> list[str]:
    """Return the sentence about an answer that is lost where its context is cut, or read in windows with a stride."""
    if stride is None:
        return [
            "an answer stands behind the place where its context is cut, and trains nothing: raise max_tokens"
        ]
    return ["an answer stands whole in no window of its context, and trains nothing: lower stride"]


def _named(part: str, what: str) -> str:
    return f"{part} {what}" if part else what
