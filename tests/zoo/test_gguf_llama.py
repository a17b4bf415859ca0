"""A GGUF file gives back the Llama model that was written into it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from softprompt.zoo.gguf_llama import from_gguf_rotary, read_llama, transformers_name
from tests.tolerances import assert_equal_up_to_rounding

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def to_gguf_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """What converters to GGUF do to the rows of a query or key projection."""
    out, d = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, d).swapaxes(1, 2).reshape(out, d)


def tiny_llama(tied: bool) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.5,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def write_gguf(model: LlamaForCausalLM, path: Path, architecture: str = "llama") -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in model.state_dict().items():
        weight = tensor.numpy().copy()
        if name == "lm_head.weight":
            if config.tie_word_embeddings:
                continue
            writer.add_tensor("output.weight", weight)
        elif name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", weight)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", weight)
        else:
            layer, _, part = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
            heads = {"self_attn.q_proj": 4, "self_attn.k_proj": 2}.get(part)
            stored = weight if heads is None else to_gguf_rotary(weight, heads)
            writer.add_tensor(f"blk.{layer}.{GGUF_NAMES[part]}.weight", stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_read_from_gguf_gives_the_same_logits(tmp_path: Path, tied: bool) -> None:
    model = tiny_llama(tied)
    write_gguf(model, tmp_path / "tiny.gguf")
    read = read_llama(tmp_path / "tiny.gguf")
    ids = torch.randint(0, 40, (2, 9))
    with torch.no_grad():
        assert_equal_up_to_rounding(read(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (read.lm_head.weight is read.model.embed_tokens.weight) == tied
    assert read.config.rms_norm_eps == 1e-5
    assert not read.training


def test_a_model_read_from_gguf_is_saved_and_loaded_whole(tmp_path: Path) -> None:
    write_gguf(tiny_llama(tied=True), tmp_path / "tiny.gguf")
    read = read_llama(tmp_path / "tiny.gguf")
    read.save_pretrained(tmp_path / "saved")
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.dtype == torch.float32
    for name, tensor in read.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_rotary_order_is_undone_head_by_head() -> None:
    weight = np.arange(12 * 3.0).reshape(12, 3)
    stored = to_gguf_rotary(weight, heads=2)
    assert not np.array_equal(stored, weight)
    assert np.array_equal(from_gguf_rotary(stored, heads=2), weight)
    assert not np.array_equal(from_gguf_rotary(stored, heads=3), weight)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf(tiny_llama(tied=True), tmp_path / "tiny.gguf", architecture="falcon")
    with pytest.raises(ValueError, match="architecture 'falcon', expected 'llama'"):
        read_llama(tmp_path / "tiny.gguf")


def test_a_tensor_that_is_not_of_a_llama_model_is_named() -> None:
    assert transformers_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    with pytest.raises(ValueError, match=r"blk\.0\.ssm_in\.weight"):
        transformers_name("blk.0.ssm_in.weight")
