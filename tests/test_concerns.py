"""What makes a result doubtful: found by plain functions, and warned of once, at the caller's line, by every door."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

from softprompt import PromptTuning, Recipe, SoftpromptWarning, TunedPrompt, fit, fit_many
from softprompt.concerns import class_concerns, number_concerns, span_concerns
from softprompt.prompts.base import Method
from softprompt.tasks.classes import ClassPrediction
from softprompt.tasks.metrics import classification_metrics, regression_metrics, tag_metrics
from tests.tiny.task import ROWS, TASK, tiny_backbone

LABELS = ("neg", "pos", "mixed")


def of_classes(gold: str, predicted: str, **settings: Any) -> list[str]:
    names = {label[0]: label for label in LABELS}
    metrics = classification_metrics([names[g] for g in gold], [names[p] for p in predicted], LABELS)
    return class_concerns(metrics, **settings)


def test_predictions_that_are_worse_than_the_commonest_label_are_doubtful() -> None:
    assert of_classes("nnnp", "nppn") == [
        "accuracy 0.2500 is no better than always giving the most frequent label, 0.7500"
    ]
    [said] = of_classes("nnnp", "nnpn", part="validation", trained=True)
    assert said.startswith("validation accuracy 0.5000 is no better than")
    assert said.endswith("; try more steps or another learning_rate")
    assert of_classes("nnnp", "nnpp") == [
        "accuracy 0.7500 is no better than always giving the most frequent label, 0.7500"
    ]
    assert not of_classes("nnnpp", "nnnpn")


def test_one_label_for_all_rows_is_one_sentence() -> None:
    assert of_classes("nnnp", "nnnn") == ["every row was given the label 'neg'"]
    assert of_classes("nnnp", "pppp", part="test") == ["every test row was given the label 'pos'"]


def test_labels_that_rows_have_and_none_is_given_are_doubtful() -> None:
    assert of_classes("nnppm", "nnppn", part="test") == [
        "no test row was given the labels ['mixed'], which the data have"
    ]


def test_rows_of_one_label_cannot_show_that_nothing_was_learned() -> None:
    assert not of_classes("nn", "nn")
    assert of_classes("nn", "pp") == ["no row was given the labels ['neg'], which the data have"]


def test_a_number_and_a_span_are_judged_by_their_own_metrics() -> None:
    assert not number_concerns(regression_metrics([1.0, 2.0], [1.1, 1.9]))
    assert not number_concerns(regression_metrics([1.0], [1.0]))  # its mean is the number itself
    assert number_concerns(regression_metrics([1.0, 2.0], [2.0, 1.0]), "test") == [
        "the test error is not below that of always answering the mean"
    ]
    assert span_concerns({"f1": 0.0}, "test") == [
        "no predicted answer to the test rows shares a word with a right one"
    ]
    assert not span_concerns({"f1": 0.1})


def test_metrics_without_classes_and_none_at_all_raise_no_doubt() -> None:
    assert not class_concerns({})
    assert not class_concerns({"rouge_l": 0.0, "rows": 3})
    assert not number_concerns({})
    assert not span_concerns({})
    tags = tag_metrics([["O", "B-X"], ["O"]], [["O", "O"], ["O"]])
    assert class_concerns(tags, unit="word", kind="tag") == ["every word was given the tag 'O'"]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model answers with from now on, row by row from the beginning; empty: with its own answers."""
    from softprompt.tasks.classification import TextClassificationEncoder

    own, given = TextClassificationEncoder.predict, list[str]()

    def predict(self: Any, model: Any, rows: Any, **settings: Any) -> Any:
        if not given:
            return own(self, model, rows, **settings)
        return [ClassPrediction(label, {label: 1.0}) for label in given[: len(rows)]]

    monkeypatch.setattr(TextClassificationEncoder, "predict", predict)
    return given


JUDGED = [{"text": "film", "label": label} for label in ("neg", "neg", "neg", "pos")]
WORSE = ["neg", "pos", "pos", "neg"]
SHORT: dict[str, Any] = {"steps": 2, "warmup": 0, "progress": False}


def warned(call: Any) -> list[str]:
    """The warnings of a call, all of which must name this file's line."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert {Path(warning.filename).name for warning in caught} <= {Path(__file__).name}
    assert all(issubclass(warning.category, SoftpromptWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def test_fit_warns_once_of_validation_rows_answered_worse_than_by_the_commonest_label(
    answers: list[str],
) -> None:
    answers += WORSE
    method: Method = PromptTuning(length=2)
    said = "validation accuracy 0.2500 is no better than always giving the most frequent label, 0.7500"
    [found] = warned(lambda: fit(tiny_backbone(), TASK, method, ROWS, JUDGED, **SHORT))
    assert found.startswith(said)
    runs = [(method, Recipe(steps=2, warmup=0, seed=seed)) for seed in (0, 1)]
    found = warned(lambda: fit_many(tiny_backbone(), TASK, runs, ROWS, JUDGED, progress=False))
    assert [one.partition(said)[0] for one in found] == ["run 0: ", "run 1: "]


def test_evaluate_warns_as_the_command_line_does(answers: list[str]) -> None:
    tuned: TunedPrompt = fit(tiny_backbone(), TASK, PromptTuning(length=2), ROWS, **SHORT)
    answers += WORSE
    assert warned(lambda: tuned.evaluate(JUDGED)) == [
        "accuracy 0.2500 is no better than always giving the most frequent label, 0.7500"
    ]
    answers[:] = ["neg"] * 4
    assert warned(lambda: tuned.evaluate(JUDGED)) == ["every row was given the label 'neg'"]
    answers[:] = ["neg", "neg", "neg", "pos"]
    assert not warned(lambda: tuned.evaluate(JUDGED))
