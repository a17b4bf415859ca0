"""Tiny random vision transformers and images, as `tests.tiny.language` has decoders: built in process, every weight random."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from softprompt import ImageClassification, ImageRule
from softprompt.backbones.vision.backbone import VisionBackbone

Tower = Literal["vit", "deit", "dinov2", "dinov2-registers", "clip", "siglip"]
TOWERS: tuple[Tower, ...] = get_args(Tower)

SIZE, PATCH, WIDTH, LAYERS = 12, 4, 32, 3
PATCHES = (SIZE // PATCH) ** 2

RULE = ImageRule((SIZE, SIZE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resample=2)


def tiny_tower(
    tower: Tower, *, dtype: torch.dtype = torch.float64, seed: int = 0, patch: int = PATCH
) -> PreTrainedModel:
    """A random vision transformer in eval mode. d = 32, H = 4, three layers, 9 patches of 4 x 4 pixels unless told.

    DINOv2 with registers has SwiGLU for its feed-forward network, and two registers.
    """
    sizes: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
    sizes |= {"image_size": SIZE, "patch_size": patch, "initializer_range": 0.2}
    deep = {"intermediate_size": 48, **sizes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        match tower:
            case "vit":
                model = ViTModel(ViTConfig(**deep), add_pooling_layer=False)
            case "deit":
                model = DeiTModel(DeiTConfig(**deep), add_pooling_layer=False)
            case "dinov2":
                model = Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2))
            case "dinov2-registers":
                config = Dinov2WithRegistersConfig(
                    **sizes, mlp_ratio=2, use_swiglu_ffn=True, num_register_tokens=2
                )
                model = Dinov2WithRegistersModel(config)
            case "clip":
                model = CLIPVisionModel(CLIPVisionConfig(**deep))
            case "siglip":
                model = SiglipVisionModel(SiglipVisionConfig(**deep))
        with torch.no_grad():
            for parameter in model.parameters():
                # Tokens and biases start at 0, norms at 1, CLIP's weights near 0: a wrong one would not show.
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.to(dtype).eval()


def vision_backbone(
    tower: Tower = "vit",
    *,
    packed: bool | None = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    rule: ImageRule = RULE,
    patch: int = PATCH,
) -> VisionBackbone:
    """A frozen tiny tower with its rule."""
    model = tiny_tower(tower, dtype=dtype, seed=seed, patch=patch).requires_grad_(False)
    return VisionBackbone(model, rule, name=f"tiny/{tower}", packed=packed)


def images(count: int, size: int = SIZE, seed: int = 0, width: int | None = None) -> torch.Tensor:
    """Images as the model reads them, (count, 3, size, width) float64; square if no width is given."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, width or size, generator=generator, dtype=torch.float64)


def picture(
    red: int, green: int, blue: int, size: tuple[int, int] = (16, 12), noise: int = 20, seed: int = 0
) -> Image.Image:
    """A noisy picture of one colour."""
    drawn = np.random.default_rng(seed).integers(-noise, noise + 1, (size[1], size[0], 3))
    return Image.fromarray((np.array([red, green, blue]) + drawn).clip(0, 255).astype(np.uint8))


TASK = ImageClassification(labels=["red", "blue"])
ROWS: list[dict[str, Any]] = [
    {"image": picture(*colour, seed=seed), "label": label}
    for seed in range(8)
    for label, colour in (("red", (180, 80, 90)), ("blue", (90, 80, 180)))
]
