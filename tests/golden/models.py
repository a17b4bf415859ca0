"""The tiny models that the golden files were written with. Nothing here ever changes: a saved prompt knows its backbone.

Every weight comes from SHAKE-256 of its place in the model and is a small whole number over a power of two, so that it
has the same bits on every machine and in every release of torch. No model has an RMS norm, which transformers computes
in float32 whatever the dtype.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTModel,
)

import softprompt as sp

POSITIONS = 96
SIDE = 8  # pixels of an image, 4 patches
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3
VOCABULARY = len(SPECIAL_TOKENS) + 256
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RULE = sp.ImageRule((SIDE, SIDE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), resample=2)


@functools.cache
def backbone(name: str) -> Any:
    """A frozen model: "golden/decoder", "golden/encoder", "golden/encoder-decoder", "golden/dual" in float64, "golden/vision"
    in float32."""
    return _KINDS[name.removeprefix("golden/")](name)


def picture(red: int, green: int, blue: int, number: int) -> Image.Image:
    """A speckled picture of one colour."""
    noise = _numbers(f"picture {number}", SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) // 8
    return Image.fromarray((np.array([red, green, blue]) + noise).clip(0, 255).astype(np.uint8))


def _decoder(name: str) -> Any:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=16, n_head=2, n_layer=2, **IDS)
    return _frozen(GPT2LMHeadModel(config), name, tokenizer=_tokenizer())


def _encoder(name: str) -> Any:
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=24,
        **IDS,
    )
    return _frozen(BertModel(config, add_pooling_layer=False), name, tokenizer=_tokenizer("<s> $A </s>"))


def _encoder_decoder(name: str) -> Any:
    sides = {
        f"{side}_{setting}": value
        for side in ("encoder", "decoder")
        for setting, value in {"layers": 2, "attention_heads": 2, "ffn_dim": 24}.items()
    }
    config = BartConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        d_model=16,
        decoder_start_token_id=2,
        **sides,
        **IDS,
    )
    return _frozen(BartForConditionalGeneration(config), name, tokenizer=_tokenizer("$A </s>"))


def _vision(name: str) -> Any:
    model = ViTModel(ViTConfig(**_tower()), add_pooling_layer=False)
    return _frozen(model, name, torch.float32, processor=RULE)


def _dual(name: str) -> Any:
    text = {
        "vocab_size": VOCABULARY + 1,
        "max_position_embeddings": 48,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "intermediate_size": 24,
        **IDS,
        "eos_token_id": VOCABULARY,  # 2 has a meaning of its own there
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=_tower(), projection_dim=12))
    tokenizer = _tokenizer()
    tokenizer.model_max_length = 48
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <end>", special_tokens=[("<s>", 1), ("<end>", VOCABULARY)]
    )
    return _frozen(model, name, tokenizer=tokenizer, processor=RULE)


_KINDS: dict[str, Callable[[str], Any]] = {
    "decoder": _decoder,
    "encoder": _encoder,
    "encoder-decoder": _encoder_decoder,
    "vision": _vision,
    "dual": _dual,
}


def _tower() -> dict[str, Any]:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    return {**sizes, "image_size": SIDE, "patch_size": SIDE // 2}


def _tokenizer(around: str = "$A") -> PreTrainedTokenizerFast:
    """One token for each byte: nothing is learned, so that nothing can come out otherwise."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: i for i, piece in enumerate([*SPECIAL_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _frozen(model: PreTrainedModel, name: str, dtype: torch.dtype = torch.float64, **readers: Any) -> Any:
    model = model.to(dtype).eval()
    with torch.no_grad():
        # By their place: transformers gives modules other names more often than another order.
        for place, (weight, parameter) in enumerate(model.named_parameters()):
            numbers = _numbers(f"{name} {place}", parameter.numel())
            number = torch.from_numpy(numbers).to(dtype).reshape(parameter.shape)
            if parameter.dim() == 0:
                parameter.fill_(2.0)  # CLIP's scale, in the logarithm
            elif parameter.dim() > 1 or weight.endswith("class_embedding"):
                parameter.copy_(number / 2**8)
            else:  # a bias, or the gain of a norm
                is_gain = weight.endswith("weight")
                parameter.copy_(number / 2**10 + is_gain)
    model.config._name_or_path = name
    model.name_or_path = name
    return sp.load_backbone(model, **readers)


def _numbers(name: str, count: int) -> np.ndarray:
    """So many whole numbers from -128 to 127 that belong to a name."""
    content = hashlib.shake_256(name.encode()).digest(count)
    return np.frombuffer(content, dtype=np.uint8).astype(np.int64) - 128
