"""How answers are written: options of `generate`, its seed, and answers that are one of given texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.outputs import EncodedRow
from softprompt.tasks import TextSetting
from tests.naive import causal as naive
from tests.tasks.fake import FakeScorer
from tests.tiny.language import tiny_tokenizer
from tests.tiny.task import TASK, tiny_backbone

TOKENIZER = tiny_tokenizer()
ROWS = [{"question": "what is it"}, {"question": "who"}, {"question": "where was the old house"}]
CHOICES = ("a dog", "a dog and a cat", "yes", "river")


def task(**settings: Any) -> sp.TextGeneration:
    return sp.TextGeneration(
        **{"template": "{question}?", "target": " {answer}", "max_new_tokens": 6, **settings}
    )


@pytest.fixture(scope="module")
def tuned() -> Any:
    backbone = tiny_backbone()
    rows = [{**row, "answer": "a cat"} for row in ROWS]
    return sp.fit(backbone, task(), sp.PromptTuning(length=2), rows, steps=1, warmup=0, progress=False)


def test_options_reach_generate_and_the_seed_does_not():
    encoder = task(generation={"do_sample": True, "top_p": 0.9, "seed": 1}).bind(TextSetting(TOKENIZER))
    rows = [encoder.encode(row, answer=False) for row in ROWS]
    model = FakeScorer(len(TOKENIZER), {row.context: [20] for row in rows})
    encoder.predict(model, rows)
    given = {name: model.options[name] for name in ("do_sample", "top_p", "max_new_tokens")}
    assert given == {"do_sample": True, "top_p": 0.9, "max_new_tokens": 6}
    assert "seed" not in model.options


def test_a_seed_repeats_what_is_drawn_and_leaves_the_callers_generator_alone(tuned):
    def draw(seed: int) -> list[str]:
        return tuned.predict(ROWS, generation={"do_sample": True, "temperature": 3.0, "seed": seed})

    before = torch.random.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert draw(1) == first
    assert draw(2) != first
    assert tuned.predict(ROWS) == tuned.predict(ROWS)


def test_options_of_a_call_are_put_over_those_of_the_task(tuned):
    short = tuned.predict(ROWS, generation={"max_new_tokens": 1})
    assert short == tuned.with_task(task(max_new_tokens=1)).predict(ROWS)
    beams = tuned.predict(ROWS, generation={"num_beams": 3})
    assert beams == tuned.with_task(task(generation={"num_beams": 3})).predict(ROWS)


def test_the_most_probable_choice_is_taken_end_mark_included(tuned):
    found = tuned.predict(ROWS, choices=CHOICES)
    tokens = tuned.module().tokens[0]
    for row, answer in zip(ROWS, found, strict=True):
        encoded = tuned.encoder.encode(row, answer=False)
        sums = [
            naive.target_log_likelihood(tuned.backbone.model, encoded, ids(f" {choice}</s>"), tokens).sum()
            for choice in CHOICES
        ]
        assert answer == CHOICES[int(torch.stack(sums).argmax())]


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("wanted", CHOICES)
def test_a_choice_that_begins_another_can_win_and_so_can_the_other(wanted):
    class Likes(FakeScorer):
        """Every token of the wanted answer is likely behind those before it."""

        def next_logits(self, before: Any, prompt: int = 0) -> torch.Tensor:
            whole = (*row.context, *ids(f" {wanted}</s>"))
            logits = torch.zeros(self.vocabulary, dtype=torch.float64)
            if tuple(before) == whole[: len(before)] and len(before) < len(whole):
                logits[whole[len(before)]] = 15.0
            return logits

    encoder = task(choices=CHOICES).bind(TextSetting(TOKENIZER))
    row: EncodedRow = encoder.encode(ROWS[0], answer=False)
    model = Likes(len(TOKENIZER))
    assert encoder.predict(model, [row]) == [wanted]
    with_answer = encoder.encode({**ROWS[0], "answer": "yes"})
    assert encoder.predict(model, [with_answer]) == [wanted]  # the right answer is not looked at
    assert with_answer.targets == (ids(" yes</s>"),)


def test_room_is_kept_for_the_longest_choice():
    encoder = task(choices=("yes", "one two three four five and a big red bird"), max_new_tokens=1)
    row = encoder.bind(TextSetting(TOKENIZER, max_tokens=16)).encode({"question": "one " * 40}, answer=False)
    assert len(row.context) + max(map(len, row.origin)) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"generation": {"temprature": 1.0}}, "did you mean 'temperature'"),
        ({"generation": {"temperature": 0.5}}, "add do_sample: true"),
        ({"generation": {"seed": 1}}, "add do_sample: true"),
        ({"generation": {"do_sample": True, "seed": -1}}, "whole number"),
        ({"generation": {"cache_implementation": "none"}}, "refuses"),
        ({"generation": {"max_new_tokens": 3}}, "a setting of the task"),
        ({"generation": {"eos_token_id": 3}}, "what ends an answer"),
        ({"choices": ["yes", "yes"]}, "repeat"),
        ({"choices": [" yes"]}, "belongs in the target"),
        ({"choices": ["yes"], "generation": {"num_beams": 2}}, "nothing is generated"),
        ({"choices": ["yes"], "target": "{a} {b}"}, "stand for one field"),
    ],
)
def test_options_and_choices_without_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_tasks_that_write_no_text_say_so(tuned):
    with pytest.raises(ValueError, match="text-classification writes no text"):
        TASK.answering({"num_beams": 2}, None)
    with pytest.raises(ValueError, match="strictly positive"):
        tuned.predict(ROWS, generation={"do_sample": True, "temperature": -1.0})
    with pytest.raises(ValueError, match="expected a list"):
        tuned.predict(ROWS, choices="yes")
    with pytest.raises(ValueError, match="holds the end mark"):
        tuned.with_task(task(end=" and")).predict(ROWS, choices=["a dog and a cat", "yes"])
    assert tuned.task.writes_text
    assert not task(choices=("yes", "no")).writes_text
