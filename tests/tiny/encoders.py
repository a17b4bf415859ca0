"""Tiny random encoders and their tokenizer, as `tests.tiny.language` has decoders: built in process, every weight random."""

from __future__ import annotations

from typing import Literal, get_args

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    EuroBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)
from transformers.models.modernbert import modeling_modernbert

from softprompt.backbones.masked.backbone import MaskedBackbone
from tests.tiny.language import POSITIONS, WINDOW, _prepared, _trained_bpe

Encoder = Literal["bert", "roberta", "modernbert", "distilbert", "albert", "eurobert", "deberta-v2"]
ENCODERS: tuple[Encoder, ...] = get_args(Encoder)
"""ALBERT's layers share their weights, DeBERTa's attention cannot be reached."""

CLS, SEP = 1, 2  # <s> and </s>


def encoder_tokenizer(*, types: int = 2, mask: str = "<mask>") -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with "<s> text </s>" around a text, and a mask that swallows the space before it.

    types: 2 tells the second of two texts by its type as BERT does, 1 does not, as RoBERTa.
    """
    tokenizer = Tokenizer.from_str(_trained_bpe())
    tokenizer.add_special_tokens([AddedToken(mask, lstrip=True, special=True)])
    pair = "<s> $A </s> $B:1 </s>:1" if types == 2 else "<s> $A </s> </s> $B </s>"
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=pair, special_tokens=[("<s>", CLS), ("</s>", SEP)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        mask_token=mask,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def tiny_encoder(
    architecture: Encoder,
    *,
    head: bool = True,
    tied: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> PreTrainedModel:
    """A random encoder in eval mode, with a head over words or without. d = 48, H = 4, two layers (ModernBERT three,
    two of them with a window of WINDOW tokens to both sides). EuroBERT has grouped queries (Hkv = 2) and D = 16, not d / H."""
    config = _config(architecture)
    config.tie_word_embeddings = tied
    auto = AutoModelForMaskedLM if head else AutoModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
        return _prepared(model, dtype)


def encoder_backbone(
    architecture: Encoder = "bert", *, packed: bool | None = None, **settings: object
) -> MaskedBackbone:
    """A frozen tiny encoder with its tokenizer; `settings` are those of `tiny_encoder`."""
    model = tiny_encoder(architecture, **settings).requires_grad_(False)  # type: ignore[arg-type]
    tokenizer = encoder_tokenizer(types=1 if architecture == "roberta" else 2)
    return MaskedBackbone(model, tokenizer, name=f"tiny/{architecture}", packed=packed)


@pytest.fixture
def exact_rotary(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModernBERT turns queries and keys in float32: equality would hold to 1e-7 at best."""

    def apply(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        turn = modeling_modernbert.rotate_half
        return q * cos + turn(q) * sin, k * cos + turn(k) * sin

    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", apply)


def _config(architecture: Encoder) -> PreTrainedConfig:
    vocabulary = len(encoder_tokenizer())
    common = {"vocab_size": vocabulary, "max_position_embeddings": POSITIONS, "initializer_range": 0.2}
    common |= {"pad_token_id": 0, "bos_token_id": CLS, "eos_token_id": SEP}
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    match architecture:
        case "bert":
            return BertConfig(**common, **sizes)
        case "roberta":
            return RobertaConfig(**common, **sizes)
        case "albert":
            return AlbertConfig(**common, **sizes, embedding_size=16)
        case "deberta-v2":
            return DebertaV2Config(**common, **sizes, relative_attention=True, pos_att_type=["p2c", "c2p"])
        case "distilbert":
            return DistilBertConfig(**common, dim=48, n_heads=4, n_layers=2, hidden_dim=64)
        case "eurobert":
            grouped = {"num_key_value_heads": 2, "head_dim": 16}
            return EuroBertConfig(**common, **sizes, **grouped, mask_token_id=vocabulary - 1)
        case "modernbert":
            return ModernBertConfig(
                **common,
                **{**sizes, "num_hidden_layers": 3},
                global_attn_every_n_layers=3,
                local_attention=2 * WINDOW,
                cls_token_id=CLS,
                sep_token_id=SEP,
            )
