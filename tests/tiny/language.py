"""Tiny random language models and their tokenizer, built in process: no file, no network.

Every weight is random, biases and norms too, and wide enough that logits differ visibly, so that a wrong
position, mask or layer shows in the output. Shape letters: d width, H and Hkv query and key-value heads.
"""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

Architecture = Literal["llama", "qwen3", "gpt2", "opt", "gpt_neox", "mistral", "gemma3_text"]
ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)

Seq2Seq = Literal["t5", "bart", "whisper"]
SEQ2SEQ: tuple[Seq2Seq, ...] = get_args(Seq2Seq)
FRAMES = 20  # of a spectrogram that the tiny whisper hears, MELS bins each
MELS = 8

POSITIONS = 128  # tokens; also the tokenizer's model_max_length
WINDOW = 8  # tokens a sliding-window layer sees, in mistral and in gemma3_text
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")  # ids 0, 1, 2, 3

_WORDS = (
    "a an the this that these it he she we they you i and or but not no yes is was are were be been has "
    "have had do did will would can could may must to of in on at by for from with as if so than then "
    "when where who what why how all some any more most very too only again here there now never always "
    "good bad great terrible fine awful happy sad angry calm positive negative neutral true false maybe "
    "film movie book story actor scene plot music food service place city house river train bus day night "
    "year time man woman child dog cat bird tree water fire read write watch see miss missed love hate "
    "like ask answer question text label class sentiment review sentence word number one two three four "
    "five red green blue black white big small old new"
)
WORDS = tuple(_WORDS.split())


def tiny_causal_lm(
    architecture: Architecture,
    *,
    tied: bool | None = None,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    attention: str = "sdpa",
) -> PreTrainedModel:
    """A random causal LM in eval mode, with the vocabulary of `tiny_tokenizer`.

    architecture: one of ARCHITECTURES. All have d = 48 and H = 4, and two layers; gemma3_text has three (two
    sliding, one full). Llama, qwen3, mistral and gemma3_text have grouped queries (Hkv = 2); in qwen3 and
    gemma3_text the head size is 16, not d / H.
    tied: whether the output head is the embedding table; None is the family's own habit.
    seed: equal arguments give equal weights; torch's global generator is left as it was.
    attention: transformers' `attn_implementation`. "eager" takes its softmax in float32 whatever the dtype.
    In float64 the RMS norms, which transformers computes in float32, are replaced by equal ones in float64.
    """
    config = _config(architecture)
    if tied is not None:
        config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=torch.float32
        )
        return _prepared(model, dtype)


def tiny_seq2seq(
    architecture: Seq2Seq,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    attention: str = "sdpa",
    layers: tuple[int, int] = (2, 2),
) -> PreTrainedModel:
    """A random encoder-decoder in eval mode, with the vocabulary of `tiny_tokenizer(closed=True)`; see `tiny_causal_lm`.

    layers: of the encoder and of the decoder. T5 has relative positions and scores its heads' products unscaled, bart
    learned positions, scaled embeddings and a forced BOS; whisper hears MELS x FRAMES spectrograms.
    """
    vocabulary = Tokenizer.from_str(_trained_bpe()).get_vocab_size()
    ids = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    sides = {
        f"{side}_{name}": value
        for side, count in zip(("encoder", "decoder"), layers, strict=True)
        for name, value in {"layers": count, "attention_heads": 4, "ffn_dim": 64}.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel
        if architecture == "t5":
            shape = {"d_model": 48, "d_kv": 10, "num_heads": 4, "d_ff": 64}
            depth = {"num_layers": layers[0], "num_decoder_layers": layers[1]}
            model = T5ForConditionalGeneration(T5Config(**ids, **shape, **depth, decoder_start_token_id=0))
            # Tied, random weights would say one word again and again.
            model.lm_head.weight = nn.Parameter(torch.randn(vocabulary, 48))
        elif architecture == "bart":
            more = {"max_position_embeddings": POSITIONS, "init_std": 0.2, "scale_embedding": True}
            start = {"decoder_start_token_id": 2}
            model = BartForConditionalGeneration(BartConfig(**ids, **sides, d_model=48, **more, **start))
            model.generation_config.forced_bos_token_id = 1
            model.generation_config.forced_eos_token_id = None
        else:
            sound = {"num_mel_bins": MELS, "max_source_positions": FRAMES // 2}
            more = {"max_target_positions": POSITIONS, "init_std": 0.2, "decoder_start_token_id": 1}
            model = WhisperForConditionalGeneration(
                WhisperConfig(**ids, **sides, d_model=48, **sound, **more)
            )
        model.config._attn_implementation = attention
        return _prepared(model, dtype)


def _prepared(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases start at 0 and norms at 1: a wrong one would not show
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model = model.to(dtype)
    if dtype == torch.float64:
        _keep_float64_in_norms(model)
    return model.eval()


def tiny_tokenizer(
    *, bos: bool = False, closed: bool = False, padding_side: Literal["left", "right"] = "right"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 700 pieces, trained here on WORDS.

    Every word of WORDS is one token, alone and after a space (two different tokens, as in GPT-2); other words
    fall into several. Any text round-trips. No special token is added unless `bos`, which puts `<s>` before
    every text, as Llama does; `closed` puts `</s>` behind it, as T5 does. Each call gives a fresh object, which
    its test may change.
    """
    tokenizer = Tokenizer.from_str(_trained_bpe())
    if bos or closed:
        single = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * closed)
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=single.replace("$A", "$A $B"),
            special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("<s>", "</s>")],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side=padding_side,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def _trained_bpe() -> str:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # never reached: merging ends when every word is whole
        min_frequency=1,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([text for word in WORDS for text in (word, f" {word}")], trainer)
    return str(tokenizer.to_str())


def _config(architecture: Architecture) -> PreTrainedConfig:
    tokens = {
        "vocab_size": Tokenizer.from_str(_trained_bpe()).get_vocab_size(),
        "max_position_embeddings": POSITIONS,
    }
    tokens |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # 0.2, not the usual 0.02: at d = 48 each layer then changes its input by about as much as it passes on.
    common = {**tokens, "hidden_size": 48, "num_attention_heads": 4, "initializer_range": 0.2}
    grouped = {**common, "num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 64}
    match architecture:
        case "llama":
            return LlamaConfig(**grouped)
        case "qwen3":
            return Qwen3Config(**grouped, head_dim=16)
        case "mistral":
            return MistralConfig(**grouped, sliding_window=WINDOW)
        case "gemma3_text":
            layer_types = ["sliding_attention", "full_attention", "sliding_attention"]
            settings = {
                **grouped,
                "num_hidden_layers": 3,
                "layer_types": layer_types,
                "sliding_window": WINDOW,
            }
            return Gemma3TextConfig(**settings, head_dim=16, query_pre_attn_scalar=16)
        case "gpt_neox":
            return GPTNeoXConfig(**common, num_hidden_layers=2, intermediate_size=64)
        case "opt":
            return OPTConfig(**common, num_hidden_layers=2, ffn_dim=64, word_embed_proj_dim=48)
        case "gpt2":
            return GPT2Config(
                vocab_size=tokens["vocab_size"],
                n_positions=POSITIONS,
                n_embd=48,
                n_head=4,
                n_layer=2,
                initializer_range=0.2,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )


def _keep_float64_in_norms(model: nn.Module) -> None:
    """Replace each RMS norm by torch's: through float32, equality would hold to 1e-7 at best."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if not type(norm).__name__.endswith(("RMSNorm", "T5LayerNorm")):
                continue
            gain = norm.weight.detach()
            exact = nn.RMSNorm(
                gain.numel(), eps=getattr(norm, "variance_epsilon", None) or norm.eps, dtype=gain.dtype
            )
            # Gemma stores the gain's distance from 1.
            exact.weight = nn.Parameter(gain + 1 if type(norm).__name__.startswith("Gemma") else gain.clone())
            setattr(parent, name, exact)
