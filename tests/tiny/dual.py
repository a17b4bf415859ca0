"""Tiny random dual encoders, as `tests.tiny.language` has decoders: built in process, every weight random."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from tokenizers import Tokenizer, processors
from transformers import (
    BertConfig,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    ViTConfig,
)

from softprompt import ImageTextClassification
from softprompt.backbones.dual.backbone import DualBackbone
from tests.tiny.language import _trained_bpe, tiny_tokenizer
from tests.tiny.vision import LAYERS, PATCH, RULE, SIZE, WIDTH

Dual = Literal["clip", "siglip", "vit-bert"]
DUALS: tuple[Dual, ...] = get_args(Dual)

TEXT_WIDTH, TEXT_POSITIONS, EMBEDDED = 24, 20, 20

TASK = ImageTextClassification(
    labels=["red", "blue", "old_house"], names={"blue": "very blue water"}, template="a picture of a {}."
)
"""Names of one, three and two tokens."""


def dual_tokenizer(dual: Dual) -> PreTrainedTokenizerFast:
    """`<s> text </s>`; SigLIP's has nothing in front, and pads with its end token; CLIP's end token is the last one."""
    tokenizer = tiny_tokenizer(bos=dual != "siglip", closed=True)
    tokenizer.model_max_length = TEXT_POSITIONS
    if dual == "clip":
        tokenizer.add_special_tokens({"eos_token": "<end>"})
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A <end>", special_tokens=[("<s>", 1), ("<end>", len(tokenizer) - 1)]
        )
    if dual == "siglip":
        tokenizer.pad_token = "</s>"
    if dual == "vit-bert":  # its tokenizer knows types of tokens
        inner = tokenizer.backend_tokenizer
        inner.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token="<pad>",
            cls_token="<s>",
            sep_token="</s>",
            unk_token="<unk>",
            model_max_length=TEXT_POSITIONS,
            model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        )
    return tokenizer


def tiny_dual(dual: Dual, *, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A random dual encoder in eval mode: three layers of width 32 see, two of width 24 read (SigLIP embeds in 32)."""
    vocabulary = Tokenizer.from_str(_trained_bpe()).get_vocab_size()
    sees: dict[str, Any] = {"hidden_size": WIDTH, "num_attention_heads": 4, "num_hidden_layers": LAYERS}
    sees |= {"image_size": SIZE, "patch_size": PATCH, "intermediate_size": 48}
    reads: dict[str, Any] = {"hidden_size": TEXT_WIDTH, "num_attention_heads": 4, "num_hidden_layers": 2}
    reads |= {"intermediate_size": 40, "vocab_size": vocabulary, "max_position_embeddings": TEXT_POSITIONS}
    ends: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    # 2 has a meaning of its own there.
    last: dict[str, Any] = {"vocab_size": vocabulary + 1, "eos_token_id": vocabulary}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        match dual:
            case "clip":
                config = CLIPConfig(
                    text_config=reads | ends | last, vision_config=sees, projection_dim=EMBEDDED
                )
                model = CLIPModel(config)
            case "siglip":
                text = reads | ends | {"projection_size": WIDTH, "pad_token_id": 2}
                model = SiglipModel(SiglipConfig(text_config=text, vision_config=sees))
            case "vit-bert":
                both = VisionTextDualEncoderConfig.from_vision_text_configs(
                    ViTConfig(**sees), BertConfig(**reads, pad_token_id=0), projection_dim=EMBEDDED
                )
                model = VisionTextDualEncoderModel(both)
        with torch.no_grad():
            for parameter in model.parameters():
                # Biases start at 0, norms at 1, weights near 0: a wrong one would not show.
                parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return model.to(dtype).eval()


def dual_backbone(
    dual: Dual = "clip", *, packed: bool | None = True, dtype: torch.dtype = torch.float64, seed: int = 0
) -> DualBackbone:
    """A frozen tiny dual encoder with its tokenizer and rule."""
    model = tiny_dual(dual, dtype=dtype, seed=seed).requires_grad_(False)
    return DualBackbone(model, dual_tokenizer(dual), RULE, name=f"tiny/{dual}", packed=packed)
