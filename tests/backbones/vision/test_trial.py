"""Any vision model of transformers loads if a trial finds that prompts can be put among its rows; else the reason is true."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModel,
    BeitConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DPTConfig,
    IJepaConfig,
    InternVLVisionConfig,
    PixioConfig,
    PreTrainedModel,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
    ViTModel,
    ViTMSNConfig,
)

from softprompt import load_backbone
from softprompt.images import POOLINGS
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import vision as naive
from tests.tiny.vision import RULE

SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8,
    "intermediate_size": 48, "initializer_range": 0.2,
}  # fmt: skip
PATCHES = 4


def model_of(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModel.from_config(config, dtype=torch.float64)
    return model.eval()


TAKEN = {
    "vit": ViTConfig(**SMALL),
    "msn": ViTMSNConfig(**SMALL),
    "i-jepa": IJepaConfig(**SMALL),
    "pixio, several class tokens": PixioConfig(**SMALL, n_cls_tokens=3),
    "beit, absolute positions": BeitConfig(**SMALL, use_absolute_position_embeddings=True),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_passes_the_trial_is_run_as_concatenation(name: str) -> None:
    backbone = load_backbone(model_of(TAKEN[name]), processor=RULE)
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randn(2, 3, 32, generator=generator, dtype=torch.float64).requires_grad_()
    pixels = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    rows = [EncodedRow((), read=(POOLINGS.index("mean"),), media=image) for image in pixels]
    for output, told in (
        (PromptOutput(tokens=prompts[:1]), {"shallow": prompts[0]}),
        (PromptOutput(layers=(prompts[:1], prompts[1:])), {"deep": [*prompts]}),
    ):
        found = backbone.states(rows, output)
        expected = torch.stack(
            [naive.state(backbone.model, image, PATCHES, **told, read="mean") for image in pixels]
        )
        assert_close(found, expected, rtol=1e-9, atol=1e-9)
        weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        (got,) = torch.autograd.grad((found * weights).sum(), prompts)
        (want,) = torch.autograd.grad((expected * weights).sum(), prompts)
        assert_close(got, want, rtol=1e-9, atol=1e-9)


DECODER = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}


@pytest.mark.parametrize(
    "config",
    [
        ViTMAEConfig(**SMALL, **DECODER),  # its own forward drops patches
        InternVLVisionConfig(**{**SMALL, "image_size": [16, 16], "patch_size": [8, 8]}),  # takes no mask
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_are_called_otherwise_load(config: Any) -> None:
    backbone = load_backbone(model_of(config), processor=RULE)
    assert backbone.spec.image is not None
    assert "mean-with-prompts" in backbone.spec.image.poolings


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (BeitConfig(**SMALL, use_relative_position_bias=True), "takes no prompts"),
        (Data2VecVisionConfig(**SMALL), "cannot be run layer by layer"),
        (DPTConfig(**SMALL, is_hybrid=False), "cannot be run layer by layer"),
        (SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=16, patch_size=4, window_size=2), "layer"),
        (ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2), "has 0 layers"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)  # fmt: skip
def test_what_cannot_take_prompts_is_refused(config: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_backbone(model_of(config), processor=RULE)


def test_a_layer_that_reads_where_a_row_stands_is_found_out() -> None:
    model: Any = model_of(ViTConfig(**SMALL))
    layer = model.layers[0] if hasattr(model, "layers") else model.encoder.layer[0]

    def shifted(module: Any, inputs: Any) -> Any:
        rows = inputs[0]
        return (rows + torch.arange(rows.shape[1], dtype=rows.dtype)[:, None] / 10, *inputs[1:])

    layer.register_forward_pre_hook(shifted)
    with pytest.raises(ValueError, match="its layers read where a row stands"):
        load_backbone(model, processor=RULE)


def test_images_of_another_number_of_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="ViTModel reads images of 1 channels; softprompt prepares three"):
        load_backbone(ViTModel(ViTConfig(**SMALL, num_channels=1)), processor=RULE)
