"""Tasks with a head: where they read, what they ask for, what they make of the outputs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from softprompt import (
    Regression,
    SequenceClassification,
    SoftpromptWarning,
    SpanExtraction,
    TokenClassification,
)
from softprompt.outputs import EncodedRow
from softprompt.tasks.base import Task, TextSetting
from softprompt.tasks.span_extraction import best_span
from tests.tiny.language import tiny_tokenizer


class Outputs:
    """A model whose head says what it is told to, row by row."""

    def __init__(self, *outputs: Tensor) -> None:
        self.given = outputs
        self.rows: list[EncodedRow] = []

    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor:
        self.rows += rows
        return torch.cat([self.given[row.prompt] for row in rows])

    def score(self, rows: Sequence[EncodedRow]) -> Any: ...
    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> Any: ...


def setting(**settings: Any) -> TextSetting:
    bos = settings.pop("bos", False)
    return TextSetting(tiny_tokenizer(bos=bos), **settings)


def words(row: EncodedRow) -> list[str]:
    """The tokens that are read, as text."""
    return [tiny_tokenizer().decode([row.context[i]]) for i in row.read]


MOOD = SequenceClassification("{text} sentiment", labels=["neg", "pos"])


# --- whole texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "pooling", "expected"),
    [
        ("{text} now", "last", [" now"]),
        ("{text} now{soft}", "last", [" now"]),  # a virtual token at the end does not count
        ("{text} now", "mean", ["<s>", "film", " now"]),
        ("{text}{soft} now", "mean", ["<s>", "film", " now"]),
    ],
)
def test_only_real_tokens_are_read(template: str, pooling: Any, expected: list[str]) -> None:
    task = SequenceClassification(template, labels=["a", "b"], pooling=pooling)
    row = task.bind(setting(virtual_tokens=3, bos=True)).encode({"text": "film"}, answer=False)
    assert sorted(atom for atom in row.context if atom < 0) == [-3, -2, -1]
    assert words(row) == expected
    assert row.pooled == (pooling == "mean")


def test_the_first_token_is_read_in_an_encoder_and_the_last_in_a_decoder() -> None:
    families = {"causal-lm": " sentiment", "masked-lm": "<s>", "text-encoder": "<s>"}
    for family, expected in families.items():
        row = MOOD.bind(setting(virtual_tokens=2, bos=True, family=family)).encode(
            {"text": "film"}, answer=False
        )
        assert words(row) == [expected]
    assert MOOD.bind(setting(family="encoder-decoder")).encode({"text": "film"}, answer=False).pooled


def test_the_first_token_of_a_decoder_is_refused() -> None:
    for task in (
        SequenceClassification("{text}", labels=["a", "b"], pooling="first"),
        Regression("{text}", pooling="first"),
    ):
        with pytest.raises(ValueError, match="the first token sees no other"):
            task.bind(setting())


def test_a_row_without_any_real_token_cannot_be_read() -> None:
    task = SequenceClassification("{text}{soft}", labels=["a", "b"])
    with pytest.raises(ValueError, match="no tokens except virtual ones"):
        task.bind(setting(virtual_tokens=3)).encode({"text": ""}, answer=False)


def test_the_loss_is_the_cross_entropy_of_the_right_label() -> None:
    encoder = MOOD.bind(setting())
    rows = [encoder.encode({"text": "film", "label": label}) for label in ("pos", "neg")]
    assert [row.answer for row in rows] == [(1,), (0,)]
    outputs = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
    assert_close(
        encoder.loss(outputs, rows), functional.cross_entropy(outputs, torch.tensor([1, 0]), reduction="none")
    )
    with pytest.raises(ValueError, match="row 0 was encoded without its answer"):
        encoder.loss(outputs, [encoder.encode({"text": "film"}, answer=False)])


def test_a_prediction_holds_the_probability_of_every_label() -> None:
    encoder = MOOD.bind(setting())
    (found,) = encoder.predict(
        Outputs(torch.tensor([[0.0, 1.0]])), [encoder.encode({"text": "a"}, answer=False)]
    )
    assert found.label == "pos"
    assert found.probabilities["pos"] == pytest.approx(1 / (1 + 2.718281828**-1))


def test_a_regression_answers_in_the_units_of_the_data() -> None:
    task = Regression("{text}", low=1.0, high=5.0)
    encoder = task.bind(setting())
    rows = [encoder.encode({"text": "film", "value": value}) for value in (1, "5", 3.0)]
    assert [row.answer for row in rows] == [(-1.0,), (1.0,), (0.0,)]
    outputs = torch.tensor([[0.0], [1.0], [2.0]])
    assert_close(encoder.loss(outputs, rows), torch.tensor([1.0, 0.0, 4.0]))
    model = Outputs(torch.tensor([[0.5]]))
    assert encoder.predict(model, rows) == [4.0, 4.0, 4.0]
    with pytest.raises(ValueError, match="'many', expected a number"):
        encoder.encode({"text": "film", "value": "many"})


# --- words --------------------------------------------------------------------------------------------------

NER = TokenClassification(tags=["O", "B-PER", "I-PER"])


def test_each_word_is_read_at_its_first_token() -> None:
    encoder = NER.bind(setting(virtual_tokens=2, bos=True))
    row = encoder.encode({"words": ["film", "Xylophones", "dog"], "tags": ["O", "B-PER", "I-PER"]})
    assert words(row)[0] == "film"
    assert words(row)[2] == " dog"
    assert words(row)[1] == "X"  # not the space in front of it, which here is a token of its own
    assert len(row.context) > 2 + 1 + 3  # the second word has several tokens
    assert row.answer == (0, 1, 2)
    assert all(row.context[i] >= 0 for i in row.read)


def test_tags_may_be_numbers_and_words_a_text() -> None:
    encoder = NER.bind(setting())
    by_number = encoder.encode({"words": ["film", "dog"], "tags": [0, 2]})
    assert by_number == encoder.encode({"words": "film dog", "tags": ["O", "I-PER"]})


def test_a_word_without_tokens_and_words_that_are_cut_off_are_outside() -> None:
    encoder = NER.bind(setting(max_tokens=3))
    row = encoder.encode({"words": ["film", "", "dog", "cat", "tree"], "tags": [1, 0, 1, 1, 1]})
    assert words(row) == ["film", " dog", " cat"] or words(row) == ["film", " dog"]
    assert len(row.context) <= 3
    model = Outputs(torch.tensor([[0.0, 1.0, 0.0]] * len(row.read)))
    (found,) = encoder.predict(model, [row])
    assert len(found) == 5
    assert (found[0], found[1], found[4]) == ("B-PER", "O", "O")


def test_the_loss_of_a_row_is_the_mean_over_its_words() -> None:
    encoder = NER.bind(setting())
    rows = [
        encoder.encode({"words": ["film", "dog", "cat"], "tags": [0, 1, 2]}),
        encoder.encode({"words": ["tree"], "tags": [1]}),
    ]
    outputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    each = functional.cross_entropy(outputs, torch.tensor([0, 1, 2, 1]), reduction="none")
    assert_close(encoder.loss(outputs, rows), torch.stack([each[:3].mean(), each[3]]))


def test_words_and_tags_that_do_not_fit_are_said() -> None:
    encoder = NER.bind(setting())
    with pytest.raises(ValueError, match="2 words and 1 tags"):
        encoder.encode({"words": ["a", "b"], "tags": ["O"]})
    with pytest.raises(ValueError, match="'B-ORG' is not among the tags"):
        encoder.encode({"words": ["a"], "tags": ["B-ORG"]})
    TokenClassification(tags=["O", "B-PER", "I-PER", "E-PER", "S-PER"])
    with pytest.raises(ValueError, match=r"'M-PER' stands among entities.*convert the tags to IOB2"):
        TokenClassification(tags=["O", "B-PER", "M-PER", "E-PER"])
    with pytest.raises(ValueError, match='need the tag "O"'):
        TokenClassification(tags=["B-PER", "I-PER"])
    with pytest.raises(ValueError, match="words"):
        TokenClassification(tags=["O", "B-PER"], template="{text}")


# --- spans --------------------------------------------------------------------------------------------------

QA = SpanExtraction()
TEXT = "the big red dog and the small cat"


def question(answer: str = "red dog", **fields: Any) -> dict[str, Any]:
    context = fields.get("context", TEXT)
    return {"question": "what is big", "context": context,
            "answers": {"text": [answer], "answer_start": [context.index(answer)]}} | fields  # fmt: skip


@pytest.mark.parametrize("length", [0, 3])
def test_an_answer_is_read_back_as_it_was_marked(length: int) -> None:
    encoder = QA.bind(setting(virtual_tokens=length, bos=True))
    for answer in ("red dog", "the", "the small cat", TEXT, "cat"):
        row = encoder.encode(question(answer))
        assert len(row.read) == 8  # tokens of the context alone
        outputs = torch.zeros(8, 2)
        outputs[int(row.answer[0]), 0] = outputs[int(row.answer[1]), 1] = 9.0
        (found,) = encoder.predict(Outputs(outputs), [row])
        assert found.text == answer
        assert TEXT[slice(*found.characters)] == answer
        assert str(found) == answer
        assert encoder.loss(outputs, [row]).item() < 0.01


def test_half_a_token_is_answered_by_the_whole() -> None:
    encoder = QA.bind(setting())
    row = encoder.encode(question("og and"))
    assert words(row)[int(row.answer[0]) : int(row.answer[1]) + 1] == [" dog", " and"]


def test_a_long_context_is_cut_at_its_end_and_an_answer_there_trains_nothing() -> None:
    whole = QA.bind(setting()).encode(question())
    encoder = QA.bind(setting(max_tokens=len(whole.context) - 3))
    row = encoder.encode(question())
    assert row.context == whole.context[:-3]
    assert row.answer == whole.answer
    with pytest.warns(SoftpromptWarning, match="behind the place where its context is cut"):
        cut = encoder.encode(question("cat"))
    outputs = torch.randn(10, 2, requires_grad=True)
    losses = encoder.loss(outputs, [row, cut])
    assert losses[0] > 0
    assert losses[1] == 0
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad[5:].abs().sum() == 0


def test_a_question_that_is_too_long_says_so() -> None:
    with pytest.raises(ValueError, match=r"max_tokens is 2, and without 'context' it still takes \d"):
        QA.bind(setting(max_tokens=2)).encode(question())


def test_the_best_span_does_not_run_backwards_and_is_not_too_long() -> None:
    logits = torch.zeros(4, 2)
    logits[3, 0], logits[0, 1] = 5.0, 5.0
    first, last, _ = best_span(logits, 30)
    assert first <= last
    logits = torch.zeros(4, 2)
    logits[0, 0], logits[3, 1], logits[1, 1] = 5.0, 5.0, 3.0
    assert best_span(logits, 30)[:2] == (0, 3)
    assert best_span(logits, 2)[:2] == (0, 1)
    probability = logits.double().softmax(0)
    assert best_span(logits, 30)[2] == pytest.approx((probability[0, 0] * probability[3, 1]).item())


def test_answers_that_are_not_in_the_context_are_said() -> None:
    encoder = QA.bind(setting())
    wrong = question() | {"answers": {"text": ["red dog"], "answer_start": [0]}}
    with pytest.raises(ValueError, match="start at character 0, where the context has 'the big'"):
        encoder.encode(wrong)
    with pytest.raises(ValueError, match="without an answer are not supported"):
        encoder.encode(question() | {"answers": {"text": [], "answer_start": []}})
    with pytest.raises(ValueError, match="expected"):
        encoder.encode(question() | {"answers": "red dog"})


# --- all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["{words} {words}", "{words}{{words}}"])
def test_the_labelled_field_stands_in_the_template_once(template: str) -> None:
    task = TokenClassification(tags=["O", "B-A"], template=template)
    if template == "{words} {words}":
        with pytest.raises(ValueError, match="2 times, expected once"):
            task.bind(setting())
    else:
        row = task.bind(setting()).encode({"words": ["film", "dog"]}, answer=False)
        assert words(row) == ["film", " dog"]


@pytest.mark.parametrize(
    ("task", "rows", "metrics", "said"),
    [
        (MOOD, [{"label": "pos"}], {}, r"no training row has the labels \['neg'\]"),
        (MOOD, [{"label": "pos"}, {"label": "neg"}], {"predicted": {"pos": 3, "neg": 0}}, "given the label 'pos'"),
        (NER, [{"words": ["a", "b", "c"], "tags": [0, 1, 2]}], {"predicted": {"O": 3}}, "given the tag 'O'"),
        (NER, [{"words": ["a"], "tags": [0]}], {}, "no training word has the tags"),
        (QA, [], {"f1": 0.0}, "shares a word"),
        (Regression("{text}"), [{"value": 3}], {}, "set low and high"),
        (Regression("{text}"), [{"value": 0.5}], {}, "nothing to learn"),
        (Regression("{text}"), [], {"mse": 2.0, "mean_mse": 1.0}, "always answering the mean"),
    ],
)  # fmt: skip
def test_what_makes_a_result_doubtful_is_said(task: Task, rows: Any, metrics: Any, said: str) -> None:
    found = task.concerns(rows, metrics)
    assert any(re.search(said, sentence) for sentence in found), found


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        (MOOD, {"text": "film", "label": "pos"}, "film sentiment\npos"),
        (Regression("{text}"), {"text": "film", "value": 0.5}, "film\n0.5"),
        (NER, {"words": ["a", "b"], "tags": [0, 1]}, "a b\nO B-PER"),
        (QA, question(), f"what is big\n{TEXT}\nred dog"),
    ],
)
def test_a_row_is_shown_as_text(task: Task, row: dict[str, Any], expected: str) -> None:
    assert task.render(row) == expected
