"""Which models are accepted: a trial on an image tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

import softprompt as sp
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.image_text import ImageTextBackbone
from tests.tiny.image_text import KINDS, tiny_image_text, tiny_image_text_backbone
from tests.tiny.task import ROWS, TASK


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_class_is_accepted(kind: str) -> None:
    model, tokenizer, processor = tiny_image_text(kind, torch.float32)
    backbone = sp.load_backbone(model, tokenizer=tokenizer, processor=processor)
    assert isinstance(backbone, ImageTextBackbone)
    assert backbone.spec.reads == "images among text"
    assert backbone.packed == (KINDS[kind].group == "A")


def test_a_model_whose_images_change_nothing_is_refused() -> None:
    model, tokenizer, processor = tiny_image_text("llava", torch.float32)
    for parameter in model.base_model.multi_modal_projector.parameters():
        parameter.zero_()
    with pytest.raises(ValueError, match=r"the order of images changes nothing.*text_only=True"):
        sp.load_backbone(model, tokenizer=tokenizer, processor=processor)


def test_a_model_whose_processor_writes_other_numbers_of_placeholders_is_refused() -> None:
    model, tokenizer, processor = tiny_image_text("llava", torch.float32)
    processor.patch_size = 4
    with pytest.raises(ValueError, match="Image features and image tokens do not match"):
        sp.load_backbone(model, tokenizer=tokenizer, processor=processor)


def _built(config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    return model


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: AutoConfig.for_model("florence2"), "its encoder reads the image and the text"),
        (lambda: AutoConfig.for_model("blip"), "images enter through layers of their own"),
        (lambda: AutoConfig.for_model("mllama"), "images enter through layers of their own"),
        (
            lambda: AutoConfig.for_model("chameleon", vocabulary_map={"<image>": 4, "IMGIMGBZ": 5}),
            "an image becomes token ids of its own vocabulary",
        ),
    ],
    ids=["encoder-decoder", "pixels beside", "cross-attention", "image ids"],
)
def test_other_kinds_of_models_are_refused_with_the_reason(config: Callable[[], Any], reason: str) -> None:
    _, tokenizer, processor = tiny_image_text("llava", torch.float32)
    with pytest.raises(ValueError, match=f"is refused: {reason}.*text_only=True"):
        ImageTextBackbone(_built(config()), tokenizer, processor)


def test_text_decoders_are_loaded_alone() -> None:
    model, tokenizer, _ = tiny_image_text("llava", torch.float32)
    backbone = sp.load_backbone(model, tokenizer=tokenizer, text_only=True)
    assert isinstance(backbone, CausalBackbone)
    assert backbone.table is model.get_input_embeddings().weight
    with pytest.raises(ValueError, match="text_only is for models that read images among text"):
        sp.load_backbone(backbone.model, tokenizer=tokenizer, text_only=True)
    model, tokenizer, _ = tiny_image_text("qwen2_vl", torch.float32)
    with pytest.raises(ValueError, match="no language model for a decoder of type 'qwen2_vl_text'"):
        sp.load_backbone(model, tokenizer=tokenizer, text_only=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
def test_a_prompt_of_the_text_alone_is_opened_on_the_text_alone(tmp_path: Path) -> None:
    whole = tiny_image_text_backbone("gemma3", torch.float32)
    whole.model.save_pretrained(tmp_path / "model")
    whole.tokenizer.save_pretrained(tmp_path / "model")
    backbone = sp.load_backbone(tmp_path / "model", family="causal-lm", dtype="float32", device="cpu")
    assert backbone.spec.family == "causal-lm"
    tuned = sp.fit(backbone, TASK, sp.PromptTuning(length=2), ROWS, steps=2, progress=False)
    again = sp.load(tuned.save(tmp_path / "prompt"))
    assert again.backbone.spec.family == "causal-lm"
    assert sp.load(tmp_path / "prompt", backbone).predict(["film"]) == tuned.predict(["film"])
