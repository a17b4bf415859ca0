"""Tiny random models that read images among text, one of each class, with their processors: no file, no network."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import models as kinds
from transformers.processing_utils import ProcessorMixin

from softprompt.backbones.image_text import ImageTextBackbone, processor_for
from tests.tiny.language import tiny_tokenizer

Built = tuple[PreTrainedConfig, Any]
"""A config and an image processor or a processor."""

WIDTH = 48
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 8,
    "image_size": 16,
    "initializer_range": 0.2,
}
CLIP = {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 32}


def _text(kind: str, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


@dataclass(frozen=True)
class Kind:
    """A class of models: the special tokens of its tokenizer by attribute, and what builds its config and processor."""

    tokens: dict[str, str]
    build: Callable[[PreTrainedTokenizerFast], Built]
    group: str


def _pil(module: str, name: str, **settings: Any) -> Any:
    import importlib

    found = importlib.import_module(f"transformers.models.{module}")
    return getattr(found, name)(**settings)


_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _llava(tokenizer: PreTrainedTokenizerFast) -> Built:
    image = _pil(
        "clip.image_processing_pil_clip",
        "CLIPImageProcessorPil",
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
    )
    config = kinds.llava.LlavaConfig(
        vision_config=CLIP,
        text_config=_text("llama", len(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-2,
    )
    processor = kinds.llava.LlavaProcessor(
        image,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> Built:
    grid = [[16, 32], [32, 16], [32, 32]]
    image = _pil(
        "llava_next.image_processing_pil_llava_next",
        "LlavaNextImageProcessorPil",
        size={"shortest_edge": 16},
        crop_size={"height": 16, "width": 16},
        image_grid_pinpoints=grid,
    )
    config = kinds.llava_next.LlavaNextConfig(
        vision_config=CLIP,
        text_config=_text("llama", len(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-2,
        image_grid_pinpoints=grid,
    )
    processor = kinds.llava_next.LlavaNextProcessor(
        image,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return config, processor


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> Built:
    grid = [[16, 16], [16, 32], [32, 16], [32, 32]]
    image = _pil(
        "llava_onevision.image_processing_pil_llava_onevision",
        "LlavaOnevisionImageProcessorPil",
        size={"height": 16, "width": 16},
        image_grid_pinpoints=grid,
    )
    config = kinds.llava_onevision.LlavaOnevisionConfig(
        vision_config=SIGLIP,
        text_config=_text("qwen2", len(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_9",
    )
    settings = {"num_image_tokens": 4, "vision_feature_select_strategy": "full"}
    return config, {"image_processor": image, **settings}


def _idefics(tokenizer: PreTrainedTokenizerFast, smol: bool) -> Built:
    vision = {k: v for k, v in SIGLIP.items() if k != "model_type"}
    module = kinds.smolvlm.SmolVLMConfig if smol else kinds.idefics3.Idefics3Config
    config = module(
        vision_config=vision,
        text_config=_text("llama", len(tokenizer)),
        image_token_id=tokenizer.image_token_id,
        scale_factor=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    image = _pil(
        "idefics3.image_processing_pil_idefics3",
        "Idefics3ImageProcessorPil",
        size={"longest_edge": 32},
        max_image_size={"longest_edge": 16},
        **_HALF,
    )
    return config, kinds.idefics3.Idefics3Processor(image, tokenizer, image_seq_len=1)


def _internvl(tokenizer: PreTrainedTokenizerFast) -> Built:
    image = _pil(
        "got_ocr2.image_processing_pil_got_ocr2",
        "GotOcr2ImageProcessorPil",
        size={"height": 16, "width": 16},
        max_patches=4,
    )
    config = kinds.internvl.InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": [4, 4],
            "image_size": [16, 16],
            "initializer_range": 0.2,
        },
        text_config=_text("qwen2", len(tokenizer)),
        image_token_id=tokenizer.context_image_token_id,
        downsample_ratio=0.5,
        image_seq_length=4,
    )
    return config, {"image_processor": image, "image_seq_length": 4}


_QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}


def _qwen(tokenizer: PreTrainedTokenizerFast, kind: str) -> Built:
    image = _pil(
        "qwen2_vl.image_processing_pil_qwen2_vl",
        "Qwen2VLImageProcessorPil",
        patch_size=4,
        merge_size=2,
        size={"shortest_edge": 64, "longest_edge": 1024},
        **_HALF,
    )
    vision = dict(_QWEN_VISION)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    if kind == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": WIDTH, "mlp_ratio": 2}
        module: Any = kinds.qwen2_vl.Qwen2VLConfig
        text = _text("qwen2_vl_text", len(tokenizer))
    elif kind == "qwen2_5_vl":
        vision |= {"out_hidden_size": WIDTH, "window_size": 16, "fullatt_block_indexes": [1]}
        module = kinds.qwen2_5_vl.Qwen2_5_VLConfig
        text = _text("qwen2_5_vl_text", len(tokenizer))
    else:
        vision |= {
            "out_hidden_size": WIDTH,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        }
        module = kinds.qwen3_vl.Qwen3VLConfig
        text = _text("qwen3_vl_text", len(tokenizer), head_dim=12)
        rope["mrope_interleaved"] = True
    ids = {
        "image_token_id": tokenizer.image_token_id,
        "video_token_id": tokenizer.video_token_id,
        "vision_start_token_id": tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        "vision_end_token_id": tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    }
    config = module(vision_config=vision, text_config={**text, "rope_parameters": rope}, **ids)
    template = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}{% endfor %}"
    )
    return config, {"image_processor": image, "chat_template": template}


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> Built:
    image = _pil(
        "gemma3.image_processing_pil_gemma3", "Gemma3ImageProcessorPil", size={"height": 16, "width": 16}
    )
    text = _text(
        "gemma3_text",
        len(tokenizer),
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=64,
        layer_types=["sliding_attention", "full_attention"],
    )
    config = kinds.gemma3.Gemma3Config(
        vision_config=SIGLIP,
        text_config=text,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        mm_tokens_per_image=4,
    )
    return config, kinds.gemma3.Gemma3Processor(image, tokenizer, image_seq_length=4)


def _gemma4(tokenizer: PreTrainedTokenizerFast) -> Built:
    image = _pil(
        "gemma4.image_processing_pil_gemma4",
        "Gemma4ImageProcessorPil",
        patch_size=4,
        max_soft_tokens=70,
        pooling_kernel_size=2,
    )
    text = _text(
        "gemma4_text",
        len(tokenizer),
        head_dim=16,
        global_head_dim=16,
        sliding_window=256,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=0,
        vocab_size_per_layer_input=len(tokenizer),
        num_kv_shared_layers=0,
        use_bidirectional_attention="vision",
    )
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "global_head_dim": 8,
        "patch_size": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
        "initializer_range": 0.2,
    }
    config = kinds.gemma4.Gemma4Config(
        vision_config=vision,
        text_config=text,
        audio_config=None,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        video_token_id=tokenizer.video_token_id,
        audio_token_id=tokenizer.audio_token_id,
    )
    return config, {"image_processor": image}


def _paligemma(tokenizer: PreTrainedTokenizerFast) -> Built:
    image = _pil(
        "siglip.image_processing_pil_siglip", "SiglipImageProcessorPil", size={"height": 16, "width": 16}
    )
    image.image_seq_length = 4
    processor = kinds.paligemma.PaliGemmaProcessor(image, tokenizer)
    config = kinds.paligemma.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": WIDTH, "vision_use_head": False},
        text_config=_text("gemma", len(tokenizer), head_dim=12),
        image_token_id=tokenizer.image_token_id,
        projection_dim=WIDTH,
        hidden_size=WIDTH,
    )
    return config, processor


_IMAGE = {"image_token": "<image>"}
_QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "start": "<|vision_start|>",
    "end": "<|vision_end|>",
}
_IDEFICS = {
    **_IMAGE,
    "around": "<fake_token_around_image>",
    "whole": "<global-img>",
    "end": "<end_of_utterance>",
}
_INTERN = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}
_GEMMA3 = {
    "image_token": "<image_soft_token>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
}
_GEMMA4 = {
    "image_token": "<|image|>",
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "video_token": "<|video|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}

KINDS: dict[str, Kind] = {
    "llava": Kind(_IMAGE, _llava, "A"),
    "llava_next": Kind(_IMAGE, _llava_next, "A"),
    "llava_onevision": Kind({**_IMAGE, "video_token": "<video>"}, _llava_onevision, "A"),
    "smolvlm": Kind(_IDEFICS, functools.partial(_idefics, smol=True), "A"),
    "idefics3": Kind(_IDEFICS, functools.partial(_idefics, smol=False), "A"),
    "internvl": Kind(_INTERN, _internvl, "A"),
    "qwen2_vl": Kind(_QWEN, functools.partial(_qwen, kind="qwen2_vl"), "B"),
    "qwen2_5_vl": Kind(_QWEN, functools.partial(_qwen, kind="qwen2_5_vl"), "B"),
    "qwen3_vl": Kind(_QWEN, functools.partial(_qwen, kind="qwen3_vl"), "B"),
    "gemma3": Kind(_GEMMA3, _gemma3, "C"),
    "gemma4": Kind(_GEMMA4, _gemma4, "C"),
    "paligemma": Kind(_IMAGE, _paligemma, "D"),
}


def tiny_image_text(
    kind: str, dtype: torch.dtype = torch.float64
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin]:
    """A random model of a kind, seeded, in eval mode and frozen, with its tokenizer and processor."""
    tokenizer = tiny_tokenizer()
    names = KINDS[kind].tokens
    tokenizer.add_special_tokens({"extra_special_tokens": list(names.values())})
    for name, token in names.items():
        setattr(tokenizer, name, token)
        setattr(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    config, processor = KINDS[kind].build(tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        model.resize_token_embeddings(len(tokenizer))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and not parameter.any():  # projections that training begins with
                    parameter.normal_(std=0.2)
                if parameter.dim() == 1:  # biases start at 0 and norms at 1: a wrong one would not show
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = model.to(dtype).eval().requires_grad_(False)
    if dtype == torch.float64:
        _keep_float64(model)
    return model, tokenizer, processor_for(processor, tokenizer, config, kind)


class _Norm(nn.Module):
    """An RMS norm in the precision of its input: through float32, equality would hold to 1e-7 at best."""

    def __init__(self, gain: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight = None if gain is None else nn.Parameter(gain, requires_grad=False)
        self.eps = eps

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        scaled = states * (states.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return scaled if self.weight is None else scaled * self.weight


def _keep_float64(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if not type(norm).__name__.endswith("RMSNorm"):
                continue
            gain = getattr(norm, "weight", None)
            # Gemma 3 and before store the gain's distance from 1.
            from_one = type(norm).__name__ in ("GemmaRMSNorm", "Gemma3RMSNorm")
            gain = None if gain is None else gain.detach() + from_one
            eps = getattr(norm, "variance_epsilon", None) or norm.eps
            setattr(parent, name, _Norm(gain, eps))


def tiny_image_text_backbone(kind: str = "llava", dtype: torch.dtype = torch.float64) -> ImageTextBackbone:
    """The backbone of such a model."""
    model, tokenizer, processor = tiny_image_text(kind, dtype)
    return ImageTextBackbone(model, tokenizer, processor, name=f"tiny/{kind}")


def noise(seed: int, height: int = 40, width: int = 56) -> np.ndarray:
    """An image of noise, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
