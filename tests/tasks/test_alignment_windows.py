"""Span extraction in windows: every number here is counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import MixedPrompts, PromptTuning, SoftpromptWarning, SpanExtraction, TunedPrompt, fit, load
from softprompt.outputs import EncodedRow, windows_of
from softprompt.prompts.base import linear_head
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.tasks.span_extraction import SpanExtractionEncoder, best_span
from tests.naive import masked as naive
from tests.tasks.test_tasks_heads import TEXT, Outputs, question, setting, words
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import tiny_tokenizer
from tests.tolerances import assert_equal_up_to_rounding

QA = SpanExtraction("{question}:{context}", stride=2)


def encoder(room: int, length: int = 0, **fields: Any) -> SpanExtractionEncoder:
    """Windows of `room` tokens of the context."""
    task = SpanExtraction("{question}:{context}", **({"stride": 2} | fields))
    probe = task.bind(setting(virtual_tokens=length, bos=True)).encode(question(), answer=False)
    front = len(probe.context) - 8
    return task.bind(setting(virtual_tokens=length, bos=True, max_tokens=front + room))


def text_of(row: EncodedRow) -> list[str]:
    return [word.strip() for word in words(row)[1:]]


@pytest.mark.parametrize("length", [0, 3])
def test_windows_begin_a_stride_apart_and_end_with_the_context(length: int) -> None:
    row = encoder(4, length).encode(question(), answer=False)
    parts = windows_of(row)
    assert [text_of(part) for part in parts] == [
        ["the", "big", "red", "dog"],
        ["red", "dog", "and", "the"],
        ["and", "the", "small", "cat"],
    ]
    assert {len(part.context) for part in parts} == {len(row.context)}
    front = len(row.context) - 4
    assert len({part.context[:front] for part in parts}) == 1  # the question stands in each
    assert all(part.read[0] == 0 for part in parts)  # <s>
    assert [part.origin[1][0] for part in parts] == [
        (0, 3),
        (7, 11),
        (15, 19),
    ]  # characters of the whole context


def test_a_stride_that_would_leave_tokens_out_is_a_window_long() -> None:
    row = encoder(3, stride=100).encode(question(), answer=False)
    assert [text_of(part) for part in windows_of(row)] == [
        ["the", "big", "red"],
        ["dog", "and", "the"],
        ["small", "cat"],
    ]


def test_a_context_that_fits_is_one_window() -> None:
    row = encoder(8).encode(question())
    assert windows_of(row) == [row]
    assert row.answer == (3, 4)  # "red" and "dog", behind <s>


def test_windows_without_the_whole_answer_point_to_the_first_token() -> None:
    parts = windows_of(encoder(4).encode(question("red dog and")))
    assert [part.answer for part in parts] == [(0, 0), (1, 3), (0, 0)]
    parts = windows_of(encoder(4).encode(question("the small")))  # the second "the"
    assert [part.answer for part in parts] == [(0, 0), (0, 0), (2, 3)]


def test_an_answer_longer_than_every_window_trains_nothing() -> None:
    encode = encoder(4)
    with pytest.warns(SoftpromptWarning, match="stands whole in no window of its context"):
        parts = windows_of(encode.encode(question("red dog and the small")))
    assert encode.loss(torch.randn(15, 2), parts).tolist() == [0, 0, 0]


def test_the_loss_of_a_window_is_that_of_its_start_and_end() -> None:
    encode = encoder(4)
    parts = windows_of(encode.encode(question("and the")))  # in the second and third window
    assert [part.answer for part in parts] == [(0, 0), (3, 4), (1, 2)]
    logits = torch.log(torch.tensor([1.0, 1, 2, 4, 8]))[:, None].expand(5, 2)  # probabilities 1/16 .. 1/2
    losses = encode.loss(torch.cat([logits] * 3), parts)
    expected = torch.tensor([16 * 16, 4 * 2, 16 * 8]).log() / 2
    assert_close(losses, expected)


class ByWindow(Outputs):
    """Outputs of each window, known by the first character of its context."""

    def outputs(self, rows: Any) -> Tensor:
        self.rows += rows
        return torch.cat([self.given[[0, 7, 15].index(row.origin[1][0][0])] for row in rows])


def marked(start: int, end: int, by: float) -> Tensor:
    outputs = torch.zeros(5, 2)
    outputs[start, 0] = outputs[end, 1] = by
    return outputs


def test_the_answer_is_the_best_span_of_all_windows() -> None:
    encode = encoder(4)
    row = encode.encode(question(), answer=False)
    told: list[int] = []
    model = ByWindow(marked(0, 0, 9.0), marked(1, 2, 3.0), marked(3, 4, 2.0))
    (found,) = encode.predict(model, [row], on_batch=told.append)
    assert (found.text, found.characters) == ("red dog", (8, 15))
    probability = torch.tensor([0.0, 0, 0, 0, 3]).softmax(0)[-1].item() ** 2
    assert found.probability == pytest.approx(probability, rel=1e-6)
    assert told == [1]
    # The first window is surer of "nothing here" than of any span: its best span has next to no probability.
    assert best_span(marked(0, 0, 9.0), 30, aside=1)[2] == pytest.approx(1 / (torch.e**9 + 4) ** 2, rel=1e-6)
    swapped = ByWindow(marked(0, 0, 9.0), marked(1, 2, 2.0), marked(3, 4, 3.0))
    assert encode.predict(swapped, [row])[0].text == "small cat"


def test_exact_match_and_f1_are_counted_over_rows_not_windows() -> None:
    encode = encoder(4)
    rows = [question("red dog"), question("small cat")]
    encoded = [encode.encode(row, answer=False) for row in rows]
    model = ByWindow(marked(0, 0, 9.0), marked(1, 2, 3.0), marked(0, 0, 9.0))  # "red dog" both times
    metrics = QA.evaluate(encode.predict(model, encoded, batch_size=2), rows)
    assert metrics["exact_match"] == 0.5
    assert metrics["f1"] == 0.5
    model = ByWindow(
        marked(0, 0, 9.0), marked(0, 0, 9.0), marked(4, 4, 3.0)
    )  # "cat": half of "small cat" is found
    metrics = QA.evaluate(encode.predict(model, encoded, batch_size=2), rows)
    assert metrics["exact_match"] == 0.0
    assert metrics["f1"] == pytest.approx((0 + 2 / 3) / 2)


def test_a_question_that_leaves_no_room_for_a_window_says_so() -> None:
    with pytest.raises(ValueError, match=r"max_tokens is 3, and without 'context' it still takes \d"):
        QA.bind(setting(max_tokens=3)).encode(question())


def test_a_context_in_front_of_everything_has_no_token_for_no_answer() -> None:
    task = SpanExtraction("{context} {question}", stride=2)
    with pytest.raises(ValueError, match=r"put something in front of \{context\}"):
        task.bind(setting(max_tokens=9)).encode(question())


def test_windows_train_predict_and_mix_as_rows_alone_do(tmp_path: Path) -> None:
    backbone = encoder_backbone(head=False)
    room = 14  # <s>, two virtual tokens, the question, its colon and </s> leave a few tokens of the context
    rows = [question("red dog"), question("small cat"), question("big", context="the big cat")]
    tuned = fit(
        backbone, QA, PromptTuning(length=2), rows, steps=2, batch_size=4, max_tokens=room, progress=False
    )
    parts = [part for row in rows for part in windows_of(tuned.encoder.encode(row))]
    assert tuned.recipe["rows"] == 3
    assert len(parts) > 3
    assert sum(part.answer == (0, 0) for part in parts) >= 1
    assert tuned.evaluate(rows).keys() >= {"f1", "exact_match"}
    again = load(tuned.save(tmp_path / "p"), backbone)
    assert again.predict(rows) == tuned.predict(rows)
    other = with_random_head(backbone, room)
    mixed = MixedPrompts([tuned, other])
    expected = [*tuned.predict(rows), *other.predict(rows)]
    found = mixed.predict(rows * 2, [0] * 3 + [1] * 3)
    assert_equal_up_to_rounding(found, expected)


def with_random_head(backbone: Any, room: int) -> TunedPrompt:
    generator = torch.Generator().manual_seed(3)
    module = VirtualTokens(torch.randn(4, backbone.spec.width, generator=generator)).double()
    head = linear_head(backbone.spec.width, 2, generator).double()
    with torch.no_grad():
        head.weight.normal_(std=0.5, generator=generator)
    return TunedPrompt(backbone, QA, PromptTuning(length=4), module, room + 2, head=head)


def test_the_best_span_is_what_each_window_says_alone() -> None:
    backbone = encoder_backbone(head=False)
    tuned = with_random_head(backbone, 14)
    tokens = tuned.module().tokens
    assert tokens is not None
    assert tuned.head is not None
    for row, found in zip(rows := [question(), question("cat")], tuned.predict(rows), strict=True):
        best: tuple[float, int, int] = (0.0, 0, 0)
        for part in windows_of(tuned.encoder.encode(row)):
            types = [
                int(tiny_tokenizer().convert_tokens_to_ids("</s>") in part.context[:i])
                for i in range(len(part.context))
            ]
            states = naive.states(backbone.model, part.context, tokens[0], types=types)[list(part.read)]
            start, end = tuned.head(states).softmax(0).unbind(1)
            for i in range(1, len(start)):
                for j in range(i, len(end)):
                    first, behind = part.origin[1][i - 1][0], part.origin[1][j - 1][1]
                    best = max(best, ((start[i] * end[j]).item(), first, behind))
        assert found.probability == pytest.approx(best[0], rel=1e-9)
        assert found.text == TEXT[best[1] : best[2]].strip()
