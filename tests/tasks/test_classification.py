from __future__ import annotations

import math
import pickle

import pytest
import torch
from pydantic import TypeAdapter
from tokenizers import normalizers
from torch.testing import assert_close

from softprompt.outputs import EncodedRow
from softprompt.tasks import TASKS, ClassPrediction, TextClassification, TextSetting
from softprompt.tasks.classification import CONTENT_FREE
from softprompt.tasks.verbalizer import calibrate
from tests.tasks.fake import FakeScorer
from tests.tiny.language import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTING = TextSetting(TOKENIZER, virtual_tokens=2)
LABELS = {"neg": [" bad", " quite terrible"], "pos": " good"}
ROWS = [
    {"text": "a film", "label": "pos"},
    {"text": "", "label": "neg"},
    {"text": "the actor and the plot of the movie", "label": "neg"},
]


def task(**settings) -> TextClassification:
    return TextClassification(**{"template": "{text} is", "labels": LABELS, **settings})


def naive_scores(model: FakeScorer, row: EncodedRow, *, normalised: bool = False) -> list[float]:
    scores = []
    for words in ([" bad", " quite terrible"], [" good"]):
        total = 0.0
        for word in words:
            word_ids = TOKENIZER(word, add_special_tokens=False)["input_ids"]
            log = float(model.log_likelihood(row, word_ids))
            total += math.exp(log / len(word_ids) if normalised else log)
        scores.append(math.log(total))
    return scores


def test_every_word_of_every_label_is_a_target_and_gold_is_the_first_word_of_the_right_label():
    encoder = task().bind(SETTING)
    words = [
        tuple(TOKENIZER(w, add_special_tokens=False)["input_ids"])
        for w in (" bad", " quite terrible", " good")
    ]
    assert len(words[1]) > 1
    row = encoder.encode(ROWS[0])
    assert row.targets == tuple(words)
    assert row.gold == 2
    assert encoder.encode(ROWS[1]).gold == 0
    assert encoder.encode({"text": "x"}, answer=False).gold is None
    assert encoder.encode({"text": "x"}, answer=False).targets == tuple(words)
    assert row.context[:2] == (-1, -2)


@pytest.mark.parametrize("normalised", [False, True])
def test_losses_equal_a_naive_computation(normalised):
    model = FakeScorer(len(TOKENIZER))
    for loss in ("labels", "lm"):
        encoder = task(loss=loss, length_normalised=normalised).bind(SETTING)
        rows = [encoder.encode(row) for row in ROWS]
        expected = []
        for row, gold in zip(rows, (1, 0, 0), strict=True):
            scores = naive_scores(model, row, normalised=normalised)
            expected.append(
                -scores[gold] if loss == "lm" else math.log(sum(map(math.exp, scores))) - scores[gold]
            )
        assert_close(encoder.loss(model.score(rows), rows).tolist(), expected)


def test_the_loss_is_differentiable():
    model = FakeScorer(len(TOKENIZER))
    encoder = task().bind(SETTING)
    rows = [encoder.encode(row) for row in ROWS]
    logits = model.score(rows)
    logits.logits.requires_grad_()
    encoder.loss(logits, rows).sum().backward()
    assert logits.logits.grad is not None
    assert logits.logits.grad.abs().sum() > 0


def test_predictions_are_softmaxes_over_class_scores_in_the_order_of_the_rows():
    model = FakeScorer(len(TOKENIZER))
    encoder = task().bind(SETTING)
    rows = [encoder.encode(row, answer=False) for row in ROWS]
    done: list[int] = []
    predictions = encoder.predict(model, rows, batch_size=2, on_batch=done.append)
    assert done == [2, 3]
    assert not any(model.grad_enabled)
    lengths = [len(row.context) for batch in model.batches for row in batch]
    assert lengths == sorted(lengths, reverse=True)
    for row, prediction in zip(rows, predictions, strict=True):
        expected = torch.tensor(naive_scores(model, row)).softmax(0).tolist()
        assert_close(list(prediction.probabilities.values()), expected)
        assert prediction.label == ("neg", "pos")[expected[1] > expected[0]]


def test_predictions_do_not_depend_on_the_batch_size():
    model = FakeScorer(len(TOKENIZER))
    encoder = task(calibrated=True).bind(SETTING)
    rows = [encoder.encode(row, answer=False) for row in ROWS]
    one, all_ = (encoder.predict(model, rows, batch_size=size) for size in (1, 3))
    for a, b in zip(one, all_, strict=True):
        assert_close(a.probabilities, b.probabilities)


def test_calibration_divides_by_the_mean_over_content_free_inputs_of_the_same_prompt():
    model = FakeScorer(len(TOKENIZER))
    encoder = task(calibrated=True).bind(SETTING)
    rows = [encoder.encode(ROWS[0], answer=False)]
    rows.append(EncodedRow(rows[0].context, rows[0].targets, prompt=1))
    predictions = encoder.predict(model, rows)
    for row, prediction in zip(rows, predictions, strict=True):
        free = torch.zeros(2)
        for text in CONTENT_FREE:
            context = encoder.encode({"text": text}, answer=False).context
            free_row = EncodedRow(context, row.targets, prompt=row.prompt)
            free += torch.tensor(naive_scores(model, free_row)).softmax(0) / len(CONTENT_FREE)
        p = torch.tensor(naive_scores(model, row)).softmax(0) / free
        assert_close(list(prediction.probabilities.values()), (p / p.sum()).tolist(), rtol=1e-5, atol=1e-6)
    assert len([batch for batch in model.batches if len(batch) == len(CONTENT_FREE)]) == 2


def test_a_calibrated_content_free_input_has_equal_probabilities():
    scores = torch.tensor([[3.0, -2.0, 0.5]], dtype=torch.float64)
    assert_close(calibrate(scores, scores).exp(), torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_cutting_leaves_room_for_the_longest_label_word_and_keeps_the_words():
    encoder = task().bind(TextSetting(TOKENIZER, 2, max_tokens=12))
    row = encoder.encode({"text": "good " * 50, "label": "pos"})
    longest = max(map(len, row.targets))
    assert len(row.context) == 12 - longest
    assert row.targets == encoder.encode(ROWS[0]).targets
    assert list(row.context[-1:]) == TOKENIZER(" is", add_special_tokens=False)["input_ids"]


def test_labels_are_compared_as_text_and_may_be_written_otherwise_in_the_data():
    numbers = task(labels={0: " bad", 1: " good"})
    assert numbers.read_label({"label": 1}) == "1"
    assert task(labels={"True": " yes", "False": " no"}).read_label({"label": True}) == "True"
    named = task(label_values={0: "neg", 1: "pos"}, label_column="y")
    assert named.read_label({"y": 0}) == "neg"
    assert named.read_label({"y": "pos"}) == "pos"
    assert task(columns={"label": "y"}).read_label({"y": "neg"}) == "neg"


def test_a_label_outside_the_set_is_named_with_the_set_and_the_row():
    with pytest.raises(
        ValueError, match=r"label '2' is not among the labels \['neg', 'pos'\].*'text': 'so so'"
    ):
        task().bind(SETTING).encode({"text": "so so", "label": 2})
    with pytest.raises(ValueError, match="'label' is needed"):
        task().bind(SETTING).encode({"text": "so so"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": {"a": " good"}}, "two or more"),
        ({"labels": {"a": " good", "b": ""}}, "not empty"),
        ({"labels": {"a": " good", "b": []}}, "not empty"),
        ({"labels": {"a": " good", "b": " "}}, "not empty"),
        ({"labels": {"a": " good", "b": " good"}}, "' good' stands for 'a' and for 'b'"),
        ({"labels": {"a": [" good", " good"], "b": " bad"}}, "' good' stands for 'a' and for 'a'"),
        ({"labels": {1: " good", "1": " bad"}}, "same text"),
        ({"labels": [["good"], ["bad"]]}, "labels"),
        ({"label_values": {"0": "negative"}}, r"label_values has \['negative'\]"),
        ({"columns": {"txt": "sentence"}}, "key 'txt'.* did you mean 'text'"),
        ({"template": "{text"}, "lone"),
        ({"cut": "body"}, "cut='body'"),
        ({"loss": "hinge"}, "labels"),
        ({"labells": {}}, "labells"),
    ],
)
def test_bad_settings_are_refused_at_the_door(settings, message):
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_words_that_are_the_same_tokens_are_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(ValueError, match="' Good' of 'a' and ' good' of 'b' are the same tokens"):
        task(labels={"a": " Good", "b": " good"}).bind(TextSetting(tokenizer))


def test_a_label_that_could_never_win_is_refused():
    labels = {"1": " 1", "10": " 10"}
    first, second = (TOKENIZER(w, add_special_tokens=False)["input_ids"] for w in labels.values())
    assert second[: len(first)] == first
    with pytest.raises(ValueError, match="label '10' begins with the tokens of ' 1'"):
        task(labels=labels).bind(SETTING)
    task(labels=labels, length_normalised=True).bind(SETTING)


def test_a_row_without_its_answer_has_no_loss():
    model = FakeScorer(len(TOKENIZER))
    encoder = task().bind(SETTING)
    rows = [encoder.encode(ROWS[0], answer=False)]
    with pytest.raises(ValueError, match="row 0 was encoded without its answer"):
        encoder.loss(model.score(rows), rows)


def test_evaluation_counts_right_answers_and_shows_the_majority_class():
    predictions = [ClassPrediction(label, {}) for label in ("pos", "pos", "neg")]
    metrics = task().evaluate(predictions, ROWS)
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["majority_accuracy"] == pytest.approx(2 / 3)
    assert metrics["confusion"] == {"neg": {"neg": 1, "pos": 1}, "pos": {"neg": 0, "pos": 1}}
    assert metrics["predicted"] == {"neg": 1, "pos": 2}
    assert task().main_metric in metrics


def test_a_task_survives_json_and_pickle_and_is_found_by_name():
    original = task(columns={"text": "sentence"}, calibrated=True)
    adapter = TypeAdapter(TASKS[original.name])
    assert adapter.validate_json(adapter.dump_json(original)) == original
    assert pickle.loads(pickle.dumps(original)) == original  # noqa: S301
    with pytest.raises(AttributeError):
        original.template = "x"  # type: ignore[misc]


def test_a_row_is_shown_as_plain_text_with_or_without_its_answer():
    slots = task(template="{soft:1}{text} is{soft:1}")
    assert slots.render(ROWS[0]) == "a film is good"
    assert slots.render({"text": "a film"}, answer=False) == "a film is"
