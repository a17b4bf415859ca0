from __future__ import annotations

import math
import pickle

import pytest
from pydantic import TypeAdapter
from torch.testing import assert_close

from softprompt.tasks import TASKS, TextGeneration, TextSetting
from tests.tasks.fake import FakeScorer
from tests.tiny.language import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
SETTING = TextSetting(TOKENIZER, virtual_tokens=1)
EOS = TOKENIZER.eos_token_id
ROWS = [{"question": "what is it", "answer": "a cat"}, {"question": "", "answer": "the dog and the big bird"}]


def task(**settings) -> TextGeneration:
    return TextGeneration(**{"template": "{question}?", "target": " {answer}", **settings})


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("end", "expected"),
    [("eos", [*ids(" a cat"), EOS]), ("newline", ids(" a cat\n")), (" END", ids(" a cat END"))],
)
def test_the_target_is_the_answer_and_its_end_mark(end, expected):
    row = task(end=end).bind(SETTING).encode(ROWS[0])
    assert list(row.targets[0]) == expected
    assert row.gold == 0
    assert row.context == (-1, *ids("what is it?"))


def test_without_the_answer_a_row_has_no_target_and_the_same_context():
    encoder = task(max_new_tokens=9).bind(TextSetting(TOKENIZER, 1, max_tokens=16))
    row = {"question": "what is it and why and how and when and where", "answer": "a cat"}
    with_answer, without = encoder.encode(row), encoder.encode({"question": row["question"]}, answer=False)
    assert without.targets == ()
    assert without.gold is None
    assert with_answer.context == without.context
    assert len(without.context) == 7
    assert without.context[-1:] == tuple(ids("?"))


def test_cutting_makes_room_for_the_whole_answer():
    encoder = task(max_new_tokens=1).bind(TextSetting(TOKENIZER, 1, max_tokens=14))
    row = encoder.encode({"question": "one two three " * 9, "answer": "the dog and the big bird"})
    assert list(row.targets[0]) == [*ids(" the dog and the big bird"), EOS]
    assert len(row.context) + len(row.targets[0]) == 14


def test_the_loss_is_the_mean_over_the_tokens_of_a_row_and_perplexity_over_all_tokens():
    model = FakeScorer(len(TOKENIZER))
    encoder = task().bind(SETTING)
    rows = [encoder.encode(row) for row in ROWS]
    logs = [float(model.log_likelihood(row, row.targets[0])) for row in rows]
    lengths = [len(row.targets[0]) for row in rows]
    expected = [-log / length for log, length in zip(logs, lengths, strict=True)]
    assert_close(encoder.loss(model.score(rows), rows).tolist(), expected)
    done: list[int] = []
    perplexity = encoder.perplexity(model, rows, batch_size=1, on_batch=done.append)
    assert perplexity == pytest.approx(math.exp(-sum(logs) / sum(lengths)))
    assert done == [1, 2]
    assert model.grad_enabled[-1] is False


def test_loss_and_perplexity_need_the_reference():
    model = FakeScorer(len(TOKENIZER))
    encoder = task().bind(SETTING)
    with pytest.raises(ValueError, match="no rows"):
        encoder.perplexity(model, [])
    classes = [encoder.encode(ROWS[0]), encoder.encode(ROWS[0], answer=False)]
    with pytest.raises(ValueError, match="encode with its answer"):
        encoder.loss(model.score(classes), classes)


@pytest.mark.parametrize(
    ("end", "generated", "expected"),
    [
        ("eos", [*ids(" a cat"), EOS, *ids(" dog")], "a cat"),
        ("eos", ids(" a cat\n"), "a cat"),
        ("eos", [EOS], ""),
        ("newline", [*ids(" a cat\n dog"), EOS], "a cat"),
        (" and", ids(" a cat and a dog"), "a cat"),
    ],
)
def test_an_answer_is_read_up_to_its_end_mark(end, generated, expected):
    encoder = task(end=end, max_new_tokens=7).bind(SETTING)
    row = encoder.encode(ROWS[0], answer=False)
    model = FakeScorer(len(TOKENIZER), {row.context: generated})
    assert encoder.predict(model, [row]) == [expected]
    assert model.options["max_new_tokens"] == 7
    assert model.options["do_sample"] is False
    assert EOS in model.options["eos_token_id"]
    assert model.grad_enabled == [False]


def test_predictions_come_in_the_order_of_the_rows_and_long_rows_run_first():
    encoder = task().bind(SETTING)
    rows = [encoder.encode({"question": "one " * n}, answer=False) for n in (1, 3, 2)]
    model = FakeScorer(
        len(TOKENIZER), {row.context: ids(f" {w}") for row, w in zip(rows, "abc", strict=True)}
    )
    done: list[int] = []
    assert encoder.predict(model, rows, batch_size=2, on_batch=done.append) == ["a", "b", "c"]
    assert [[len(row.context) for row in batch] for batch in model.batches] == [[6, 5], [4]]
    assert done == [2, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "yes"}, "no field"),
        ({"target": "{soft}{answer}"}, "has a slot"),
        ({"target": "{bos}{answer}"}, "has a slot"),
        ({"columns": {"anser": "a"}}, "did you mean 'answer'"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"end": ""}, "end"),
        ({"ends": "eos"}, "ends"),
    ],
)
def test_bad_settings_are_refused_at_the_door(settings, message):
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_a_tokenizer_without_eos_and_a_reference_with_the_end_mark_are_errors():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        task().bind(TextSetting(tokenizer))
    with pytest.raises(ValueError, match="holds the end mark"):
        task(end="newline").bind(TextSetting(tokenizer)).encode({"question": "", "answer": "a\nb"})


def test_evaluation_ignores_case_and_white_space_in_exact_match():
    metrics = task().evaluate(["A  cat ", "the dog"], ROWS)
    assert metrics["exact_match"] == 0.5
    assert 0.5 < metrics["rouge_l"] < 1
    assert metrics["rows"] == 2
    assert task().main_metric in metrics
    assert task(columns={"answer": "a"}).evaluate(["x"], [{"a": "x"}])["exact_match"] == 1.0


def test_a_task_survives_json_and_pickle():
    original = task(end="newline", cut="question")
    adapter = TypeAdapter(TASKS[original.name])
    assert adapter.validate_json(adapter.dump_json(original)) == original
    assert pickle.loads(pickle.dumps(original)) == original  # noqa: S301


def test_a_row_is_shown_as_plain_text():
    assert task().render(ROWS[0]) == "what is it? a cat"
    assert task().render(ROWS[0], answer=False) == "what is it?"
