"""Language modeling on raw text: prefix-LM and span corruption, with full tuning and with prompts."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import ByT5Tokenizer

import softprompt as sp
from softprompt.backbones.encoder_decoder import EncoderDecoderBackbone
from softprompt.tasks import LanguageModeling, TextSetting
from softprompt.tasks.adaptation import corrupt
from tests.tiny import tiny_seq2seq, tiny_tokenizer
from tests.tiny_task import tiny_backbone

TEXTS = [
    {"text": f"the {a} was {b} and the {a} was very {b}"} for a in ("film", "dog") for b in ("good", "bad")
]


def t5(dtype: torch.dtype = torch.float32) -> EncoderDecoderBackbone:
    model = tiny_seq2seq("t5", dtype=dtype).requires_grad_(False)
    return EncoderDecoderBackbone(model, ByT5Tokenizer(), name="tiny/t5")


def test_a_text_is_split_where_the_seed_says_and_nothing_is_lost() -> None:
    tokenizer = tiny_tokenizer(closed=True)
    setting = TextSetting(tokenizer, 2, closed=True)
    text = "the film was good and the dog was bad"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    places = set()
    for seed in range(20):
        row = LanguageModeling(seed=seed).bind(setting).encode({"text": text})
        assert row == LanguageModeling(seed=seed).bind(setting).encode({"text": text}, answer=False)
        assert row.context[:2] == (-1, -2)
        assert row.context[-1] == row.targets[0][-1] == 2
        assert [*row.context[2:-1], *row.targets[0][:-1]] == ids
        places.add(len(row.context))
    assert len(places) > 3


@pytest.mark.parametrize("length", [2, 3, 10, 100])
def test_spans_that_are_cut_out_stand_behind_their_sentinels(length: int) -> None:
    sentinels = list(range(-1, -101, -1))
    for seed in range(20):
        given, written = corrupt(range(length), sentinels, 0.15, 3.0, random.Random(seed))
        spans: dict[int, list[int]] = {}
        for token in written:
            if token < 0:
                spans[token] = []
            else:
                spans[next(reversed(spans))].append(token)
        last = written[-1]
        assert spans.pop(last) == []
        assert last == -1 - len(spans)
        assert all(spans.values())
        assert [t for token in given for t in (spans[token] if token < 0 else [token])] == list(range(length))
        assert sum(map(len, spans.values())) == max(1, round(0.15 * length))


@pytest.mark.parametrize("objective", ["prefix-lm", "span-corruption"])
def test_full_tuning_adapts_a_copy_and_prompts_learn_too(objective: str) -> None:
    backbone = t5()
    task = LanguageModeling(objective=objective)  # type: ignore[arg-type]
    before = sp.fit(backbone, task, sp.ZeroShot(), TEXTS, progress=False).evaluate(TEXTS)
    settings = {"steps": 6, "batch_size": 4, "progress": False, "learning_rate": 0.02, "warmup": 0}
    for method in (sp.FullTuning(), sp.PromptTuning(length=4)):
        after = sp.fit(backbone, task, method, TEXTS, TEXTS, **settings).evaluate(TEXTS)
        assert after["log_likelihood"] > before["log_likelihood"]
        assert after["perplexity"] < before["perplexity"]


def test_a_decoder_alone_reads_on_and_both_parts_fit_into_its_positions() -> None:
    backbone = tiny_backbone()
    tuned = sp.fit(
        backbone, LanguageModeling(), sp.PromptTuning(length=4), TEXTS, steps=1, max_tokens=12, progress=False
    )
    for row in TEXTS:
        encoded = tuned.encoder.encode(row)
        assert len(encoded.context) + len(encoded.targets[0]) == 12
    assert len(tuned.predict(["the film was good"])) == 1


def test_answers_may_begin_with_a_sentinel() -> None:
    task = sp.TextGeneration("{text}", target="<extra_id_0> {answer}")
    setting = TextSetting(ByT5Tokenizer(), 1, closed=True)
    row = task.bind(setting).encode({"text": "a", "answer": "b"})
    assert row.targets[0][0] == ByT5Tokenizer().convert_tokens_to_ids("<extra_id_0>")


def test_what_cannot_be_learned_from_is_an_error_that_says_why() -> None:
    setting = TextSetting(tiny_tokenizer())
    with pytest.raises(ValueError, match="two are needed"):
        LanguageModeling().bind(setting).encode({"text": "film"})
    with pytest.raises(ValueError, match="no sentinel <extra_id_0>"):
        LanguageModeling(objective="span-corruption").bind(setting)
    with pytest.raises(ValueError, match="a masked-lm writes no text"):
        LanguageModeling().bind(TextSetting(tiny_tokenizer(), family="masked-lm"))
    with pytest.raises(ValueError, match="which the task does not read"):
        LanguageModeling(columns={"texts": "body"})
