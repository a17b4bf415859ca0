"""A CTranslate2 file gives back the Whisper model that was written into it."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from softprompt.zoo.ctranslate2_whisper import (
    read_variables,
    read_whisper,
    transformers_names,
    whisper_tensors,
)
from tests.tiny.language import FRAMES, MELS, tiny_seq2seq
from tests.tolerances import assert_equal_up_to_rounding

OTHER_NAMES = {
    "fc1": "ffn/linear_0",
    "fc2": "ffn/linear_1",
    "final_layer_norm": "ffn/layer_norm",
    "self_attn_layer_norm": "self_attention/layer_norm",
    "encoder_attn_layer_norm": "attention/layer_norm",
    "self_attn.out_proj": "self_attention/linear_1",
    "encoder_attn.q_proj": "attention/linear_0",
    "encoder_attn.out_proj": "attention/linear_2",
}
STACKED = {"self_attn": "self_attention/linear_0", "encoder_attn": "attention/linear_1"}


def tiny_whisper() -> WhisperForConditionalGeneration:
    model = tiny_seq2seq("whisper", dtype=torch.float16)
    assert isinstance(model, WhisperForConditionalGeneration)
    return model


def variables_of(model: WhisperForConditionalGeneration) -> dict[str, np.ndarray]:
    """What CTranslate2's converter makes of a model."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    found: dict[str, np.ndarray] = {"encoder/num_heads": np.array(4, dtype=np.int16)}
    for side in ("encoder", "decoder"):
        part = f"model.{side}"
        positions = state[f"{part}.embed_positions.weight"]
        found[f"{side}/position_encodings/encodings"] = positions
        for kind, other in (("weight", "gamma"), ("bias", "beta")):
            found[f"{side}/layer_norm/{other}"] = state[f"{part}.layer_norm.{kind}"]
        for i in range(2):
            for name, written in OTHER_NAMES.items():
                kinds = ("gamma", "beta") if "norm" in name else ("weight", "bias")
                for kind, other in zip(("weight", "bias"), kinds, strict=True):
                    if (full := f"{part}.layers.{i}.{name}.{kind}") in state:
                        found[f"{side}/layer_{i}/{written}/{other}"] = state[full]
            for name, written in STACKED.items():
                if f"{part}.layers.{i}.{name}.k_proj.weight" not in state:
                    continue
                letters = "qkv" if name == "self_attn" else "kv"
                for kind in ("weight", "bias"):
                    zero = np.zeros(48, dtype=np.float16)
                    parts = [state.get(f"{part}.layers.{i}.{name}.{x}_proj.{kind}", zero) for x in letters]
                    found[f"{side}/layer_{i}/{written}/{kind}"] = np.concatenate(parts)
    for name in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            found[f"encoder/{name}/{kind}"] = state[f"model.encoder.{name}.{kind}"]
    found["decoder/embeddings/weight"] = state["model.decoder.embed_tokens.weight"]
    return found


def written(variables: dict[str, np.ndarray], specification: str = "WhisperSpec") -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    content = struct.pack("<I", 6) + text(specification) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        kind = {"float16": 4, "int16": 2}[str(array.dtype)]
        shape = struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        content += text(name) + shape + struct.pack("<BI", kind, array.nbytes) + array.tobytes()
    return content


def test_a_model_read_from_a_ctranslate2_file_gives_the_same_logits(tmp_path: Path) -> None:
    model = tiny_whisper()
    (tmp_path / "model.bin").write_bytes(written(variables_of(model)))
    read = read_whisper(tmp_path / "model.bin", model.config)
    sound, ids = torch.randn(2, MELS, FRAMES), torch.tensor([[1, 20], [1, 21]])
    with torch.no_grad():
        found, expected = (
            m(input_features=sound, decoder_input_ids=ids).logits for m in (read, model.float())
        )
    assert_equal_up_to_rounding(found, expected)
    assert read.proj_out.weight is read.model.decoder.embed_tokens.weight


def test_a_file_that_is_no_whisper_or_is_damaged_is_an_error_that_says_so() -> None:
    variables = variables_of(tiny_whisper())
    whole = written(variables)
    with pytest.raises(ValueError, match="expected version 6 and 'WhisperSpec'"):
        list(read_variables(io.BytesIO(written(variables, "TransformerSpec"))))
    with pytest.raises(ValueError, match="is cut off"):
        list(read_variables(io.BytesIO(whole[:-1])))
    with pytest.raises(ValueError, match="is not one of a Whisper model"):
        transformers_names("decoder/layer_0/gate/weight")
    name = "encoder/layer_1/self_attention/linear_0/bias"
    biased = variables | {name: np.ones_like(variables[name])}
    with pytest.raises(ValueError, match="gives the keys a bias"):
        whisper_tensors(iter(biased.items()))
