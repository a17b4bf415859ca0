"""One tiny model of each mechanism: however it is run, a row's answer is that of the plain model for the row alone.

Or the model is refused when it is loaded, and the error says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedModel

from softprompt import load_backbone
from softprompt.backbones.causal import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.agreement import (
    CHECKS,
    ROWS,
    assert_near,
    compiled_agree,
    forget,
    scores_agree,
    virtual_tokens,
)
from tests.naive import causal as naive
from tests.naive import masked as naive_masked
from tests.tiny.architectures import tiny_model
from tests.tiny.encoders import encoder_tokenizer
from tests.tiny.language import tiny_tokenizer

LATENT = {
    "kv_lora_rank": 16, "q_lora_rank": None, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "num_key_value_heads": 4,
}  # fmt: skip
EXPERTS = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A type of model, and how it is expected to run.

    name      `model_type`
    settings  of its config
    without   what its config must not be given
    packed    whether rows are packed
    compiled  whether prompts are compiled
    refuses   checks that are refused, with what the error says
    """

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    packed: bool = True
    compiled: bool = True
    refuses: dict[str, str] = field(default_factory=dict)


GPT = {"n_embd": 48, "n_layer": 2, "n_head": 4}
KINDS = {
    "rotary": Kind("llama"),
    "learned positions": Kind("gpt2", GPT),
    "parallel layers": Kind("gpt_neox", without=("num_key_value_heads",)),
    "no pad_token_id": Kind("codegen", {**GPT, "n_ctx": 64, "rotary_dim": 4}, packed=False),
    "own rotary code": Kind("gptj", {**GPT, "rotary_dim": 4}, packed=False),
    "position biases": Kind("bloom", {"n_layer": 2, "n_head": 4}, packed=False),
    "local attention": Kind(
        "gpt_neo", {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}, packed=False
    ),
    "sliding windows": Kind(
        "gemma3_text",
        {"head_dim": 16, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "soft caps": Kind("gemma2", {"head_dim": 16, "sliding_window": 4}),
    "attention sinks": Kind(
        "gpt_oss", {"head_dim": 12, "num_local_experts": 2, "num_experts_per_tok": 1}, packed=False
    ),
    "experts": Kind("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "differential attention": Kind("diffllama", compiled=False),
    "latent attention": Kind("deepseek_v3", {**LATENT, **EXPERTS}, compiled=False),
    "latent attention of v2": Kind(
        "deepseek_v2", {**LATENT, **EXPERTS, "topk_method": "greedy"}, compiled=False
    ),
    "chunked attention": Kind(
        "llama4_text",
        {"head_dim": 12, "num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 64},
        packed=False,
    ),
    "state space": Kind("mamba", {"state_size": 4}, packed=False),
    "state space beside attention": Kind(
        "jamba",
        {
            "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False, "mamba_d_state": 4,
        },
        packed=False,
    ),
    "linear beside full attention": Kind(
        "minimax",
        {
            "head_dim": 12, "num_local_experts": 2, "block_size": 4, "layer_types": ["linear_attention", "full_attention"],
        },
        packed=False,
    ),
    "gated recurrence": Kind(
        "recurrent_gemma",
        {"lru_width": 48, "num_hidden_layers": 3, "attention_window_size": 64, "head_dim": 12},
        packed=False,
    ),
    "receptance": Kind("rwkv", {"attention_hidden_size": 48}, packed=False),
    "convolutions": Kind(
        "lfm2", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}, packed=False
    ),
    "delta rule": Kind(
        "qwen3_next",
        {
            "head_dim": 12, "layer_types": ["linear_attention", "full_attention"], "linear_key_head_dim": 8,
            "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4,
            "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
        },
        packed=False,
    ),
    "decoder of an encoder-decoder": Kind(
        "bart",
        {
            "d_model": 48, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "init_std": 0.2,
            "is_encoder_decoder": False, "is_decoder": True, "max_position_embeddings": 64,
        },
        without=("num_hidden_layers", "num_attention_heads", "hidden_size"),
        packed=False,
    ),
}  # fmt: skip


def loaded(kind: Kind, **settings: Any) -> CausalBackbone:
    backbone = load_backbone(
        tiny_model(kind.name, without=kind.without, **kind.settings), tokenizer=tiny_tokenizer(), **settings
    )
    assert isinstance(backbone, CausalBackbone)
    return backbone


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.* layers attend to the last")
@pytest.mark.parametrize("mechanism", KINDS)
def test_a_row_is_answered_as_alone_on_every_path(mechanism: str) -> None:
    kind = KINDS[mechanism]
    backbone = loaded(kind)
    for name, check in CHECKS.items():
        if (reason := kind.refuses.get(name)) is not None:
            with pytest.raises(ValueError, match=reason):
                check(backbone)
        else:
            check(backbone)
    assert backbone.packed == kind.packed
    if kind.packed:
        compiled = backbone.compile(ROWS, PromptOutput(tokens=virtual_tokens(backbone)))
        assert bool(compiled.heads[0]) == kind.compiled


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", KINDS)
def test_rows_that_are_said_to_pack_are_packed_or_refused(mechanism: str) -> None:
    kind = KINDS[mechanism]
    if kind.packed:
        assert loaded(kind, packed=True).packed
    else:
        with pytest.raises(ValueError, match=r"cannot be packed: .* Load it without packed=True"):
            loaded(kind, packed=True)


NTK = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 6, "long_factor": [1.5, 2, 3, 4, 5, 6],
    "original_max_position_embeddings": 10, "factor": 4.0,
}  # fmt: skip
CHANGING = {
    "long rope": Kind(
        "phi3",
        {"rope_parameters": LONG, "max_position_embeddings": 64, "original_max_position_embeddings": 10},
    ),
    "dynamic NTK": Kind("llama", {"rope_parameters": NTK, "max_position_embeddings": 10}),
}


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", CHANGING)
@pytest.mark.parametrize("packed", [None, False])
def test_rows_of_other_lengths_do_not_change_the_positions_of_a_row(
    mechanism: str, packed: bool | None
) -> None:
    backbone = loaded(CHANGING[mechanism], packed=packed)
    assert backbone.packed == (packed is None)
    longest = EncodedRow((-1, -2, -3, *range(60, 75)), ((40,), (41, 42)), read=(17,))
    across = EncodedRow(
        (-1, -2, -3, *range(70, 76)), ((40,), (41, 42), (41, 43, 44))
    )  # 9 tokens, then 10 and 11
    rows = [*ROWS, longest, across]
    scores_agree(backbone, rows)
    compiled_agree(backbone, rows)
    compiled_agree(backbone, rows[::-1])


@pytest.mark.parametrize("mechanism", CHANGING)
def test_generation_follows_positions_that_change_on_the_way(mechanism: str) -> None:
    backbone = loaded(CHANGING[mechanism])
    tokens = virtual_tokens(backbone).detach()
    prompt = PromptOutput(tokens=tokens)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
    apart = [backbone.generate([row], prompt, **options)[0] for row in ROWS]
    assert backbone.generate(ROWS, prompt, **options) == apart
    assert backbone.generate(ROWS, backbone.compile(ROWS, prompt), **options) == apart
    if mechanism == "long rope":  # dynamic NTK leaves keys in the cache as they were
        assert apart == [naive.greedy(backbone.model, row.context, tokens[0], 6) for row in ROWS]
    forget(backbone)


@torch.no_grad()
@pytest.mark.parametrize("mechanism", CHANGING)
@pytest.mark.parametrize("packed", [None, False])
def test_positions_that_change_stay_apart_from_those_of_the_users_model(
    mechanism: str, packed: bool | None
) -> None:
    backbone = loaded(CHANGING[mechanism], packed=packed)
    prompt = PromptOutput(tokens=virtual_tokens(backbone))
    short, long = ([EncodedRow(tuple(range(60, end)), ((40,),))] for end in (65, 75))
    forget(backbone)
    buffers = {name: buffer.clone() for name, buffer in backbone.model.named_buffers()}
    before = backbone.score(short, prompt).logits
    beyond = backbone.score(long, prompt).logits
    assert torch.equal(backbone.score(short, prompt).logits, before)
    for name, buffer in backbone.model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    backbone.model(input_ids=torch.arange(20, 40)[None], use_cache=False)  # longer than both, by the user
    assert torch.equal(backbone.score(short, prompt).logits, before)
    assert torch.equal(backbone.score(long, prompt).logits, beyond)


MASKED = {
    "longformer": {
        "attention_window": 4,
        "max_position_embeddings": 64,
        "bos_token_id": 1,
        "sep_token_id": 3,
    },
    "luke": {"entity_vocab_size": 5, "entity_emb_size": 8, "max_position_embeddings": 64},
    "fnet": {"max_position_embeddings": 64},
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_masked_model_scores_a_row_as_alone(kind: str) -> None:
    tokenizer = encoder_tokenizer()
    model = tiny_model(
        kind, AutoModelForMaskedLM, without=("vocab_size",), vocab_size=len(tokenizer), **MASKED[kind]
    )
    backbone = load_backbone(model, tokenizer=tokenizer)
    first, last, mask = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id
    rows = [
        EncodedRow((first, -1, 20, 21, mask, last), ((40,), (41, 42))),
        EncodedRow((first, -1, 22, 23, 24, 25, 26, mask, 27, last), ((40,), (41, 42))),
    ]
    tokens = torch.randn(
        1, 1, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    ).requires_grad_()
    found = backbone.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods()
    expected = torch.cat([
        naive_masked.target_log_likelihood(model, row, target, mask, tokens[0]) for row in rows for target in row.targets
    ])  # fmt: skip
    assert_near(found, expected)
    assert_near(*(torch.autograd.grad(x.sum(), tokens)[0] for x in (found, expected)))


def _xlnet() -> PreTrainedModel:
    return tiny_model("xlnet", d_model=48, n_layer=2, n_head=4, d_inner=64)


def _fsmt() -> PreTrainedModel:
    settings = {"langs": ["a", "b"], "src_vocab_size": 261, "tgt_vocab_size": 261, "d_model": 48}
    sides = {
        f"{s}_{n}": v
        for s in ("encoder", "decoder")
        for n, v in (("layers", 1), ("attention_heads", 4), ("ffn_dim", 64))
    }
    return tiny_model("fsmt", AutoModelForSeq2SeqLM, **settings, **sides, max_position_embeddings=64)


def _perceiver() -> PreTrainedModel:
    settings = {
        "num_latents": 4,
        "d_latents": 16,
        "d_model": 16,
        "num_blocks": 1,
        "num_self_attends_per_block": 1,
    }
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 16}
    shared = (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "intermediate_size",
        "num_hidden_layers",
    )
    return tiny_model("perceiver", AutoModelForMaskedLM, without=shared, **settings, **heads)


def _gemma(kind: str) -> PreTrainedModel:
    layers = {
        "layer_types": ["sliding_attention", "full_attention"],
        "num_kv_shared_layers": 0,
        "head_dim": 12,
    }
    return tiny_model(
        kind, AutoModelForCausalLM, hidden_size_per_layer_input=8, vocab_size_per_layer_input=261, **layers,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (_xlnet, "is no causal language model: its logits at a token differ"),
        (_fsmt, "FSMT"),
        (_perceiver, "Perceiver"),
        (lambda: _gemma("gemma4_text"), "a further table that gives each token a vector for each layer"),
    ],
    ids=["xlnet", "fsmt", "perceiver", "gemma4"],
)
def test_a_model_that_cannot_be_run_is_refused_when_it_is_loaded(build: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_backbone(
            build(), tokenizer=tiny_tokenizer() if "perceiver" not in reason.lower() else encoder_tokenizer()
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "mechanism", ["rotary", "linear beside full attention", "decoder of an encoder-decoder"]
)
def test_a_16_bit_model_is_run_as_in_float64(mechanism: str, dtype: torch.dtype) -> None:
    kind = KINDS[mechanism]
    model = tiny_model(kind.name, without=kind.without, **kind.settings).to(dtype)
    backbone = load_backbone(model, tokenizer=tiny_tokenizer())
    assert isinstance(backbone, CausalBackbone)
    assert backbone.packed == kind.packed
    answers = backbone.generate(
        ROWS[:2], PromptOutput(tokens=virtual_tokens(backbone).detach()), max_new_tokens=2
    )
    assert len(answers) == 2
