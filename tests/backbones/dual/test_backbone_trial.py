"""VisionTextDualEncoder takes any two towers: it compares as its own forward does, or is refused when it is loaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BeitConfig,
    BertConfig,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPVisionConfig,
    Data2VecVisionConfig,
    DeiTConfig,
    Dinov2Config,
    OwlViTVisionConfig,
    OwlViTVisionModel,
    PreTrainedModel,
    SwinConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
    ViTMSNConfig,
)

from softprompt import load_backbone
from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.tiny.dual import dual_tokenizer
from tests.tiny.vision import RULE

SEES: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8,
    "intermediate_size": 48,
}  # fmt: skip


def dual_of(vision: Any) -> PreTrainedModel:
    tokenizer = dual_tokenizer("vit-bert")
    words = BertConfig(
        hidden_size=24, num_attention_heads=4, num_hidden_layers=1, intermediate_size=32, pad_token_id=0,
        vocab_size=len(tokenizer), max_position_embeddings=20,
    )  # fmt: skip
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, words, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # The class itself would take the tower of a whole CLIP only.
        owl = isinstance(vision, OwlViTVisionConfig)
        sees = OwlViTVisionModel(vision) if owl else AutoModel.from_config(vision)
        model = VisionTextDualEncoderModel(config, vision_model=getattr(sees, "vision_model", sees))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.double().eval()


@pytest.mark.parametrize(
    "vision",
    [
        ViTConfig(**SEES),
        DeiTConfig(**SEES),
        Dinov2Config(**SEES),
        CLIPVisionConfig(**SEES),
    ],
    ids=lambda config: config.model_type,
)
def test_towers_that_are_known_compare_as_the_model_does(vision: Any) -> None:
    model = dual_of(vision)
    tokenizer = dual_tokenizer("vit-bert")
    backbone = load_backbone(model, tokenizer=tokenizer, processor=RULE)
    assert isinstance(backbone, DualBackbone)
    texts = tuple(tuple(tokenizer(text)["input_ids"]) for text in ("a red house", "water"))
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = backbone.score([EncodedRow((), texts, media=one) for one in pixels], PromptOutput()).scores()
    expected = [model(input_ids=torch.tensor([text]), pixel_values=pixels).logits_per_image for text in texts]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "vision",
    [
        BeitConfig(**SEES, use_absolute_position_embeddings=False, use_relative_position_bias=True),
        Data2VecVisionConfig(**SEES),
        OwlViTVisionConfig(**SEES),
        ViTMSNConfig(**SEES),  # no pooled state: its own forward fails
        SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=16, patch_size=4, window_size=2),
    ],
    ids=lambda config: config.model_type,
)
def test_towers_with_parts_that_are_not_known_are_refused(vision: Any) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be run here|otherwise than its own|is laid out otherwise|has .* layers"
    ):
        load_backbone(dual_of(vision), tokenizer=dual_tokenizer("vit-bert"), processor=RULE)


LIKE_CLIP = {"chinese_clip": "vit-bert", "clipseg": "clip", "metaclip_2": "clip", "blip": "vit-bert"}


@pytest.mark.parametrize("kind", LIKE_CLIP)
def test_relatives_of_clip_are_taken_where_they_compare_as_they_do_themselves(kind: str) -> None:
    tokenizer = dual_tokenizer(LIKE_CLIP[kind])  # type: ignore[arg-type]
    reads = {
        "hidden_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32,
        "vocab_size": len(tokenizer), "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": tokenizer("a")["input_ids"][-1],
    }  # fmt: skip
    config = AutoConfig.for_model(kind, text_config=reads, vision_config=SEES, projection_dim=16)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = AutoModel.from_config(config, dtype=torch.float64).eval()
    backbone = load_backbone(model, tokenizer=tokenizer, processor=RULE)
    texts = tuple(tuple(tokenizer(text)["input_ids"]) for text in ("a red house", "water"))
    pixels = torch.rand(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = backbone.score([EncodedRow((), texts, media=one) for one in pixels], PromptOutput()).scores()
    expected = [model(input_ids=torch.tensor([text]), pixel_values=pixels).logits_per_image for text in texts]
    torch.testing.assert_close(found, torch.cat(expected, dim=1), rtol=1e-5, atol=1e-5)


def test_a_vision_tower_with_a_head_is_told_from_a_dual_encoder() -> None:
    config = CLIPConfig(
        vision_config=SEES, text_config={"hidden_size": 24, "vocab_size": 50, "eos_token_id": 2}
    )
    model = CLIPForImageClassification(config)
    with pytest.raises(ValueError, match=r"pass the tower alone, load_backbone\(model.vision_model"):
        load_backbone(model, processor=RULE)
    assert load_backbone(model.vision_model, processor=RULE).spec.family == "vision-encoder"
