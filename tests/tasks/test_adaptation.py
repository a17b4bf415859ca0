"""Language modeling on raw text: prefix-LM and span corruption, with full tuning and with prompts."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
from transformers import ByT5Tokenizer

import softprompt as sp
from softprompt.backbones.base import Backbone
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.evaluation import evaluate
from softprompt.tasks import LanguageModeling, TextSetting
from softprompt.tasks.adaptation import corrupt
from tests.tasks.fake import FakeScorer
from tests.tiny.language import Seq2Seq, tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import tiny_backbone

TEXTS = [
    {"text": f"the {a} was {b} and the {a} was very {b}"} for a in ("film", "dog") for b in ("good", "bad")
]


def seq2seq(architecture: Seq2Seq = "t5") -> EncoderDecoderBackbone:
    model = tiny_seq2seq(architecture, dtype=torch.float32).requires_grad_(False)
    return EncoderDecoderBackbone(model, ByT5Tokenizer(), name=f"tiny/{architecture}")


def prefix_lm() -> Backbone:
    model = tiny_causal_lm("llama", dtype=torch.float32)
    return sp.load_backbone(model, tokenizer=ByT5Tokenizer(), prefix_lm=True)


FAMILIES: dict[str, Callable[[], Backbone]] = {
    "t5": seq2seq,
    "bart": lambda: seq2seq("bart"),
    "prefix-lm": prefix_lm,
}


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


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["prefix-lm", "span-corruption"])
@pytest.mark.parametrize("family", FAMILIES)
def test_full_tuning_adapts_a_copy_and_prompts_learn_too(
    family: str, objective: Literal["prefix-lm", "span-corruption"]
) -> None:
    backbone = FAMILIES[family]()
    given = copy.deepcopy(backbone.model.state_dict())
    task = LanguageModeling(objective=objective)
    settings = {"steps": 6, "batch_size": 4, "progress": False, "warmup": 0}
    before = sp.fit(backbone, task, sp.ZeroShot(), TEXTS, progress=False).evaluate(TEXTS)
    adapted = sp.fit(backbone, task, sp.FullTuning(), TEXTS, TEXTS, learning_rate=0.02, **settings)
    prompted = sp.fit(backbone, task, sp.PromptTuning(length=4), TEXTS, TEXTS, learning_rate=0.2, **settings)
    for after in (adapted.evaluate(TEXTS), prompted.evaluate(TEXTS)):
        assert after["log_likelihood"] > before["log_likelihood"]
        assert after["perplexity"] < before["perplexity"]
    assert all(torch.equal(tensor, given[name]) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_starts_on_the_adapted_model_as_on_any_other(family: str, tmp_path: Path) -> None:
    backbone = FAMILIES[family]()
    adapted = sp.fit(
        backbone, LanguageModeling(), sp.FullTuning(), TEXTS, steps=2, learning_rate=0.02, progress=False
    )
    adapted.backbone.model.save_pretrained(tmp_path / "adapted")
    base = sp.load_backbone(
        tmp_path / "adapted",
        tokenizer=backbone.tokenizer,
        dtype="float32",
        device="cpu",
        prefix_lm=family == "prefix-lm",
    )
    assert not any(p.requires_grad for p in base.model.parameters())
    rows = [{"text": text, "mood": mood} for text, mood in (("good film", "glad"), ("bad dog", "sad"))]
    mood = sp.TextClassification("{text}", labels={"glad": "g", "sad": "s"}, label_column="mood")
    tuned = sp.fit(base, mood, sp.PromptTuning(length=4), rows, steps=2, progress=False)
    unadapted = sp.fit(backbone, mood, sp.PromptTuning(length=4), rows, steps=2, progress=False)
    assert tuned.history[0]["gradient_norm"] > 0
    assert tuned.history[0]["loss"] != unadapted.history[0]["loss"]
    folder = tuned.save(tmp_path / "prompt")
    assert sp.load(folder, base).predict(["a film"]) == tuned.predict(["a film"])
    with pytest.raises(sp.WrongBackboneError):
        sp.load(folder, backbone)


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
    tokenizer = ByT5Tokenizer()
    sentinel = tokenizer.convert_tokens_to_ids("<extra_id_0>")
    written = sp.TextGeneration("{text}", target="<extra_id_0> {answer}")
    encoder = written.bind(TextSetting(tokenizer, 1, closed=True))
    row = {"text": "a", "answer": "b c"}
    encoded = encoder.encode(row)
    assert encoded.targets[0][0] == sentinel
    # The reference itself, generated: a prediction is read without the sentinel, and so is what it is compared with.
    model = FakeScorer(len(tokenizer), {encoded.context: list(encoded.targets[0])})
    assert encoder.predict(model, [encoded]) == ["b c"]
    metrics = evaluate(cast(Any, model), written, encoder, [row])
    assert metrics["exact_match"] == metrics["rouge_l"] == 1.0


@pytest.mark.slow
def test_label_words_may_begin_with_a_sentinel_and_prompts_learn_them() -> None:
    words = {"glad": "<extra_id_0> happy", "sad": "<extra_id_0> sad"}
    task = sp.TextClassification("{text}", labels=words, label_column="mood")
    rows = [{"text": text, "mood": mood} for text, mood in (("good film", "glad"), ("bad dog", "sad"))] * 4
    backbone = seq2seq()
    settings = {"steps": 60, "batch_size": 8, "learning_rate": 0.5, "progress": False}
    tuned = sp.fit(backbone, task, sp.PromptTuning(length=6), rows, rows, **settings)
    sentinel = backbone.tokenizer.convert_tokens_to_ids("<extra_id_0>")
    letters = backbone.tokenizer(" happy", add_special_tokens=False)["input_ids"]
    assert tuned.encoder.encode(rows[0]).targets[0] == (sentinel, *letters)
    assert tuned.evaluate(rows)["accuracy"] == 1.0


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
