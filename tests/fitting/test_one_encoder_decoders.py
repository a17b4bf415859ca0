"""Whole runs on encoder-decoders: fit, predict, save and load, mixed batches, PEFT's format, speech."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import softprompt as sp
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.tiny.language import FRAMES, MELS, Seq2Seq, tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import ROWS, TASK
from tests.tolerances import assert_equal_up_to_rounding

# PEFT 0.21.2 reads this property of transformers 5.23; nothing of ours does.
with_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STORY = sp.TextGeneration("{text}", target=" {label}", max_new_tokens=4)
HEARD = sp.TextClassification("{soft}{bos} mood", labels={"neg": " bad", "pos": " very good"}, media="audio")


def backbone_of(
    architecture: Seq2Seq = "t5", *, dtype: torch.dtype = torch.float64
) -> EncoderDecoderBackbone:
    model = tiny_seq2seq(architecture, dtype=dtype).requires_grad_(False)
    tokenizer = tiny_tokenizer(bos=architecture != "t5", closed=True)
    return EncoderDecoderBackbone(model, tokenizer, name=f"tiny/{architecture}")


def tone(pitch: float) -> list[float]:
    """A waveform as long as the tiny whisper hears."""
    time = torch.arange(FRAMES * 160) / 16_000
    return (torch.sin(2 * torch.pi * pitch * time) * 0.3).tolist()


SOUNDS: list[dict[str, Any]] = [
    {"audio": tone(pitch + 10 * i), "label": label}
    for i in range(4)
    for pitch, label in ((300.0, "neg"), (4000.0, "pos"))
]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_fit_learns_a_task_and_the_model_stays_bit_identical(architecture: Seq2Seq) -> None:
    backbone = backbone_of(architecture, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    settings = {"steps": 60, "batch_size": 8, "learning_rate": 0.1, "progress": False}
    tuned = sp.fit(backbone, TASK, sp.PromptTuning(length=6), ROWS, ROWS, **settings)
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert tuned.history[0]["loss"] > 2 * tuned.history[-1]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_the_tokenizers_closing_tokens_end_the_encoders_input_and_eos_the_answer(
    architecture: Seq2Seq,
) -> None:
    backbone = backbone_of(architecture)
    tuned = sp.fit(backbone, STORY, sp.PromptTuning(length=2), ROWS, steps=1, progress=False)
    row = tuned.encoder.encode(ROWS[0])
    begin = (1, -1, -2) if architecture == "bart" else (-1, -2)
    assert row.context[: len(begin)] == begin
    assert row.context[-1] == row.targets[0][-1] == 2
    assert len(tuned.predict(["film"])) == 1


def test_a_saved_prompt_gives_bit_identical_predictions(tmp_path: Path) -> None:
    backbone = backbone_of()
    tuned = sp.fit(backbone, TASK, sp.PromptTuning(length=3), ROWS, steps=2, progress=False)
    tuned.save(tmp_path / "prompt")
    again = sp.load(tmp_path / "prompt", backbone)
    texts = [row["text"] for row in ROWS]
    assert again.predict(texts) == tuned.predict(texts)
    with pytest.raises(sp.WrongBackboneError, match="tiny/t5"):
        sp.load(tmp_path / "prompt", backbone_of("bart"))


@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_mixed_batch_gives_each_row_what_its_own_prompt_gives_it_alone() -> None:
    backbone = backbone_of()
    tuned = [
        sp.fit(backbone, task, method, ROWS, steps=1, learning_rate=0.5, warmup=0, progress=False)
        for task, method in (
            (TASK, sp.PromptTuning(length=6)),
            (STORY, sp.PromptTuning(length=2)),
            (TASK, sp.ZeroShot()),
            (TASK, sp.FewShot(shots=2)),
        )
    ]
    texts, which = ["film now", "dog", "the house", "a film again", "never"], [0, 1, 2, 3, 0]
    together = sp.MixedPrompts(tuned).predict(texts, which, batch_size=4)
    for text, n, answer in zip(texts, which, together, strict=True):
        (alone,) = tuned[n].predict([text])
        assert_equal_up_to_rounding(answer, alone)


@pytest.mark.slow
@with_peft
@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_peft_and_we_give_the_same_logits_both_ways(architecture: Seq2Seq, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    backbone = backbone_of(architecture)
    task = sp.TextClassification(
        "{soft}{bos}{text}" if architecture == "bart" else "{text}", labels={"neg": " bad", "pos": " good"}
    )
    tokens = VirtualTokens(torch.randn(4, 48, generator=torch.Generator().manual_seed(2)))
    tuned = sp.TunedPrompt(backbone, task, sp.PromptTuning(length=4), tokens.requires_grad_(False))
    tuned.export_peft(tmp_path / "ours")
    text = "the film was good"
    row = tuned.encoder.encode({"text": text}, answer=False)
    found = backbone.score([row], tuned.module())
    start = [2, 1] if architecture == "bart" else [0]

    def logits(model: Any) -> torch.Tensor:
        ids = backbone.tokenizer([text], return_tensors="pt")
        return model(**ids, decoder_input_ids=torch.tensor([start])).logits[0, -1]

    theirs = peft.PeftModel.from_pretrained(backbone.model, tmp_path / "ours")
    assert_close(logits(theirs)[None], found.logits, rtol=1e-9, atol=1e-9)
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=False)
    back = sp.from_peft(tmp_path / "theirs", backbone, task)
    assert_close(back.module().tokens, tuned.module().tokens)


def test_a_prompt_of_a_speech_model_stands_in_the_decoder_and_learns() -> None:
    backbone = backbone_of("whisper", dtype=torch.float32)
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 0.1, "progress": False}
    tuned = sp.fit(backbone, HEARD, sp.PromptTuning(length=4), SOUNDS, **settings)
    row = tuned.encoder.encode(SOUNDS[0])
    assert row.context[:5] == (-1, -2, -3, -4, 1)
    assert row.media is not None
    assert row.media.shape == (MELS, FRAMES)
    assert tuned.history[0]["loss"] > 2 * tuned.history[-1]["loss"]
    assert tuned.evaluate(SOUNDS)["accuracy"] == 1.0
    written = sp.TextGeneration("{soft}{bos}", target=" {label}", media="audio", max_new_tokens=3)
    heard = sp.fit(backbone, written, sp.PromptTuning(length=4), SOUNDS, steps=1, progress=False)
    assert len(heard.predict(SOUNDS[:3])) == 3
    with pytest.raises(ValueError, match="stands in the decoder"):
        heard.export_peft("nowhere")


def test_sound_that_cannot_be_heard_is_an_error_that_says_why() -> None:
    encoder = HEARD.bind(
        sp.tasks.TextSetting(tiny_tokenizer(bos=True), 4, read_media=backbone_of("whisper").spec.read_media)
    )
    for sound, message in (
        ([], "expected one row of finite numbers"),
        ([[0.0], [0.1]], "mono"),
        ([0.0] * 100_000, "this model hears 0.2 s at once"),
        ({"array": [0.0], "sampling_rate": 44_100}, "resample"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder.encode({"audio": sound, "label": "pos"})
    with pytest.raises(ValueError, match="reads text only"):
        HEARD.bind(sp.tasks.TextSetting(tiny_tokenizer(), 4)).encode(SOUNDS[0])
    with pytest.raises(ValueError, match="media='audio'"):
        sp.fit(backbone_of("whisper"), TASK, sp.PromptTuning(length=2), ROWS, steps=1, progress=False)
    with pytest.raises(ValueError, match="demonstrations are text"):
        sp.fit(backbone_of("whisper"), HEARD, sp.FewShot(shots=2), SOUNDS, progress=False)
