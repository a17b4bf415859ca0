"""Facts about the real models and data sets: what shows that they were fetched and converted right."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSpeechSeq2Seq, AutoTokenizer

import softprompt as sp
from softprompt import load_backbone
from softprompt.images import read_image
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.zoo import BUILT_INS, fetch, load_rows
from softprompt.zoo.pictures import CLOTHES

pytestmark = pytest.mark.real

TALE = (
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of "
    "foolishness, it was the epoch of belief, it was the epoch of incredulity, it was the season of Light, "
    "it was the season of Darkness."
)

_EMOJI = {
    "Symbols": 224, "Activities": 85, "Flags": 270, "Travel & Places": 218, "Food & Drink": 131, "Objects": 264,
    "Animals & Nature": 159, "People & Body": 386, "Component": 5, "Smileys & Emotion": 169,
}  # fmt: skip

# Rows after repeats and contradictions are removed, counted from the packages of the table.
LABELS = {
    "multiemo-hotels": {"negative": 10213, "neutral": 4235, "positive": 7302, "ambivalent": 3044},
    "multiemo-medicine": {"neutral": 8934, "positive": 5236, "negative": 7024, "ambivalent": 1416},
    "multiemo-products": {"neutral": 694, "positive": 1827, "negative": 3425, "ambivalent": 1475},
    "multiemo-reviews": {"negative": 460, "ambivalent": 946, "positive": 896, "neutral": 225},
    "vitaminc": {"True": 27242, "Neither": 7257, "False": 20169},
    "fever": {"true": 3259, "false": 3266},
    "question-types": {
        "Entity": 1988, "Humans": 1197, "Date": 1026, "Quantity": 477, "Event": 438, "Location": 431,
        "Facility": 253, "Organization": 188, "Abbreviation": 151, "Money": 137, "Other": 136,
        "Law": 71, "Time": 7,
    },
    "emoji-fluent": {
        "Symbols": 223, "Activities": 85, "Flags": 253, "Travel & Places": 218, "Food & Drink": 128, "Objects": 261,
        "Animals & Nature": 157, "People & Body": 361, "Smileys & Emotion": 166,
    },
    "cifar10": dict.fromkeys(
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), 1000
    ),
    "fashion-mnist": dict.fromkeys(CLOTHES, 7000),
    "emoji-google": _EMOJI,
    "emoji-twitter": _EMOJI,
    "solar-cells": {
        "functional": 1508, "probably functional": 295, "probably defective": 106, "defective": 715,
    },
    "bbc-news": {"business": 503, "entertainment": 369, "politics": 403, "sports": 505, "tech": 347},
    "spam": {"ham": 4099, "spam": 1648},
}  # fmt: skip


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    folder = fetch("smollm2-135m-instruct", progress=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def test_smollm2_has_the_perplexity_of_weights_in_the_right_order(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    ids = tokenizer(TALE, return_tensors="pt").input_ids
    assert ids.shape == (1, 60)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.exp().item() == pytest.approx(6.005, abs=0.01)


def test_smollm2_knows_a_capital(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    batch = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=2, do_sample=False)[0, batch.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == " Paris."


def test_smollm2_has_the_embedding_scale_that_prompts_start_from(smollm2: tuple[Any, Any]) -> None:
    table = smollm2[0].get_input_embeddings().weight.detach()
    assert table.shape == (49152, 576)
    assert table.std().item() == pytest.approx(0.1356, abs=1e-4)
    assert table.norm(dim=1).mean().item() == pytest.approx(3.202, abs=1e-3)


def test_smollm2_keeps_its_chat_template_and_its_length(smollm2: tuple[Any, Any]) -> None:
    _, tokenizer = smollm2
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n")
    assert tokenizer.model_max_length == 8192


def test_minilm_is_a_text_encoder_that_knows_which_sentences_are_alike() -> None:
    backbone = sp.load_backbone("minilm-l6", dtype="float32", device="cpu")
    assert (backbone.spec.family, backbone.spec.width, backbone.spec.positions) == ("text-encoder", 384, 512)
    texts = (
        "A man is eating food.", "Someone eats a meal.", "The stock market crashed today.",
        "Shares fell sharply on Wall Street.",
    )  # fmt: skip
    rows = []
    for text in texts:
        ids = tuple(backbone.tokenizer(text).input_ids)
        rows.append(EncodedRow(ids, read=tuple(range(len(ids)))))
    with torch.no_grad():
        states = backbone.states(rows, PromptOutput()).split([len(row.read) for row in rows])
    means = torch.nn.functional.normalize(torch.stack([part.mean(0) for part in states]), dim=1)
    cosines = means @ means.T
    found = [cosines[a, b].item() for a, b in ((0, 1), (0, 2), (2, 3))]
    assert found == pytest.approx([0.7614, 0.0088, 0.5911], abs=2e-4)


def test_minilm_s_tokenizer_neither_cuts_nor_pads() -> None:
    tokenizer = AutoTokenizer.from_pretrained(fetch("minilm-l6", progress=False))
    assert tokenizer.model_max_length == 512
    assert len(tokenizer("hello").input_ids) == 3
    assert len(tokenizer.backend_tokenizer.encode("hello " * 300).ids) == 302


@pytest.mark.parametrize("name", LABELS)
def test_data_sets_have_the_rows_that_were_counted(name: str) -> None:
    splits = [load_rows(name, split) for split in ("train", "validation", "test")]
    rows = [row for split in splits for row in split]
    assert Counter(row["label"] for row in rows) == LABELS[name]
    assert {tuple(row) for row in rows} == {BUILT_INS[name].columns}
    texts = [{next(iter(row.values())) for row in split} for split in splits]
    assert sum(map(len, texts)) == len(set().union(*texts))
    share = 0.77 if name == "fashion-mnist" else 0.7  # its test images are its own
    assert len(splits[0]) / len(rows) == pytest.approx(share, abs=0.03)


def test_every_data_set_is_counted() -> None:
    counted = {name for name, entry in BUILT_INS.items() if entry.kind == "data"}
    assert set(LABELS) | {"flags"} == counted  # whose splits are styles: see below


def test_whisper_expects_of_silence_what_it_always_did() -> None:
    folder = fetch("whisper-tiny-en", progress=False)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(folder, dtype=torch.float32)
    begin = torch.tensor([AutoTokenizer.from_pretrained(folder)("").input_ids[:-1]])
    assert begin.tolist() == [[50257, 50362]]
    with torch.no_grad():
        logits = model(input_features=torch.zeros(1, 80, 3000), decoder_input_ids=begin).logits[0, -1]
    values, ids = logits.topk(3)
    assert ids.tolist() == [685, 764, 357]
    assert values.tolist() == pytest.approx([8.137, 7.798, 7.748], abs=1e-3)


def test_a_prompt_on_whispers_decoder_lowers_the_loss_on_two_tones() -> None:
    time = torch.arange(8000) / 16_000
    rows = [
        {"audio": (0.5 * torch.sin(2 * torch.pi * pitch * time)).tolist(), "label": label}
        for pitch, label in ((220.0, "low"), (3000.0, "high"))
    ]
    task = sp.TextClassification("{soft}{bos}", labels={"low": " low", "high": " high"}, media="audio")
    backbone = sp.load_backbone("whisper-tiny-en", dtype="float32")
    tuned = sp.fit(backbone, task, sp.PromptTuning(length=4), rows, steps=2, batch_size=2, progress=False)
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    story = sp.TextGeneration("{soft}{bos}", target=" {label}", media="audio", max_new_tokens=3)
    assert len(sp.fit(backbone, story, sp.ZeroShot(), rows, progress=False).predict(rows[:1])) == 1


def test_the_vision_transformer_sees_what_its_onnx_file_saw() -> None:
    """Figures of the exported file itself, run by onnxruntime."""
    backbone = load_backbone("vit-s14-saliency", dtype="float32")
    pixels = torch.linspace(-2, 2, 3 * 84 * 84).reshape(1, 3, 84, 84)
    with torch.no_grad():
        output = backbone.model(pixels)
    assert output.last_hidden_state.abs().mean().item() == pytest.approx(2.0893, abs=1e-3)
    assert output.pooler_output[0, :3].tolist() == pytest.approx([0.4923, 0.8316, 3.2232], abs=1e-3)
    row = EncodedRow((), read=(0,), media=pixels[0])
    with torch.no_grad():
        assert backbone.states([row], PromptOutput())[0, :3].tolist() == pytest.approx(
            [0.4923, 0.8316, 3.2232], abs=1e-3
        )


def test_an_emoji_is_in_the_same_split_in_every_style_and_can_be_read() -> None:
    for split in ("train", "validation", "test"):
        google, twitter, fluent = (
            load_rows(f"emoji-{vendor}", split) for vendor in ("google", "twitter", "fluent")
        )
        assert {row["code"] for row in google} == {row["code"] for row in twitter}
        assert {row["code"] for row in fluent} < {row["code"] for row in google}
        assert read_image(google[0]["image"]).size == read_image(twitter[0]["image"]).size == (64, 64)
        assert read_image(fluent[0]["image"]).size == (256, 256)


def test_a_flag_of_each_country_is_in_every_split_in_another_style() -> None:
    splits = {split: load_rows("flags", split) for split in ("train", "validation", "test")}
    for split, style in (("train", "google"), ("validation", "fluent"), ("test", "twitter")):
        assert {row["style"] for row in splits[split]} == {style}
        assert len({row["label"] for row in splits[split]}) == len(splits[split]) == 245
        contents = {Path(row["image"]).read_bytes() for row in splits[split]}
        assert len(contents) == 245  # no two countries with the same picture
    assert read_image(splits["test"][0]["image"]).size == (64, 64)


def test_photographs_and_clothes_have_the_sizes_that_they_are_published_in() -> None:
    for name, side, test in (("cifar10", 32, 1939), ("fashion-mnist", 28, 10_000)):
        rows = load_rows(name, "test")
        assert len(rows) == test
        assert read_image(rows[0]["image"]).size == (side, side)


@pytest.mark.slow  # where it is not cached yet: its projections are trained when it is fetched
def test_emoji_clip_tells_emoji_that_it_has_seen_in_no_style() -> None:
    backbone = load_backbone("emoji-clip", dtype="float32", device="cpu")
    rows = load_rows("emoji-google", "test")[::8]
    task = sp.ImageTextClassification(
        labels=sorted({row["name"] for row in rows}), label_column="name", template="an emoji of {}."
    )
    metrics = sp.fit(backbone, task, sp.ZeroShot(), rows, progress=False).evaluate(rows)
    assert metrics["rows"] == 50
    assert metrics["accuracy"] > 0.16  # chance is 0.02
