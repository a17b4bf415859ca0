"""Prompts in PEFT's format: adapter_config.json and adapter_model.safetensors. PEFT itself is not needed.

Virtual tokens are what PEFT puts in front of the input embeddings as the embedding module returns them: in a
model that scales its embeddings (Gemma) they are in the scaled space, as softprompt's own tokens are.

Letters: P virtual tokens, S blocks of them (2 for encoder-decoders, only the first is used), d width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch
import torch
from torch import Tensor

from softprompt.store._folders import replace_folder, standing
from softprompt.store._json import dumps, parse_object
from softprompt.store.card import peft_card
from softprompt.store.errors import PromptFileError

TaskType = Literal["CAUSAL_LM", "SEQ_2_SEQ_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"]

_CONFIG, _TENSORS, _PICKLE, _CARD = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "README.md",
)
_PROMPT = "prompt_embeddings"

# The release whose complete set of fields is written here, and against which both directions are tested.
_PEFT_VERSION = "0.21.2"


@dataclass(frozen=True, eq=False)
class PeftPrompt:
    """A prompt that PEFT, or another tool, wrote in PEFT's format.

    peft_type        e.g. PROMPT_TUNING
    tokens           (P, d) float32, in the space of the embedding module's output
    config           adapter_config.json as it is
    base_model_name  None where the config does not say
    other_tensors    what else the file holds, by name: a trained head (`modules_to_save`)
    """

    peft_type: str
    tokens: Tensor
    config: Mapping[str, Any]
    base_model_name: str | None = None
    other_tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Shape:
    """What a writer must know of the model."""

    task_type: str
    num_layers: int
    num_attention_heads: int


def read_peft(folder: str | Path, *, adapter: str | None = None) -> PeftPrompt:
    """Read a prompt in PEFT's format. Nothing that the files name is loaded or run.

    The config may hold no more than `peft_type`, `task_type` and `num_virtual_tokens`.
    adapter: which sub-folder, where PEFT saved several adapters; found alone if there is just one.
    Raises PromptFileError, saying what was found, if there is no such prompt, its type is unknown here, or
    the files are damaged or disagree.
    """
    folder = _adapter_folder(standing(Path(folder)), adapter)
    config = parse_object(_read(folder / _CONFIG), str(folder / _CONFIG))
    peft_type = config.get("peft_type")
    if not isinstance(peft_type, str) or peft_type not in _FORMATS:
        raise PromptFileError(
            f"{folder / _CONFIG} has peft_type {peft_type!r}; the types that can be read are: {_known()}"
        )
    base = config.get("base_model_name_or_path")
    tensors = _read_tensors(folder)
    read, _ = _FORMATS[peft_type]
    tokens = read(config, tensors, str(folder))
    others = {key: tensor.clone() for key, tensor in tensors.items() if key != _PROMPT}
    return PeftPrompt(peft_type, tokens, config, base if isinstance(base, str) and base else None, others)


def write_peft(
    folder: str | Path,
    tokens: Tensor,
    *,
    base_model_name: str | None,
    num_layers: int,
    num_attention_heads: int,
    task_type: TaskType = "CAUSAL_LM",
    peft_type: str = "PROMPT_TUNING",
    overwrite: bool = False,
) -> None:
    """Write virtual tokens so that `peft.PeftModel.from_pretrained(model, folder)` uses them.

    tokens: (P, d), in the space of the embedding module's output; written as float32.
    base_model_name, num_layers, num_attention_heads: of the model, written because other tools read them
    (PEFT would find them in the model). For an encoder-decoder, the encoder's.
    The folder is written whole or not at all. Raises ValueError for tokens of another shape or an unknown
    type, FileExistsError and OSError as `softprompt.store.save` does.
    """
    if tokens.dim() != 2 or 0 in tokens.shape or not tokens.is_floating_point():
        raise ValueError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}; expected floating-point (P, d)"
        )
    if task_type not in get_args(TaskType):
        raise ValueError(f"task_type is {task_type!r}; PEFT knows {', '.join(get_args(TaskType))}")
    if peft_type not in _FORMATS:
        raise ValueError(f"peft_type is {peft_type!r}; the types that can be written are: {_known()}")
    _, write = _FORMATS[peft_type]
    shape = _Shape(task_type, num_layers, num_attention_heads)
    tokens = tokens.detach().to("cpu", torch.float32).contiguous()
    fields, tensors = write(tokens, shape)
    config = {**fields, "base_model_name_or_path": base_model_name, "peft_type": peft_type}
    files = {
        _CONFIG: dumps(dict(sorted(config.items()))),
        _TENSORS: safetensors.torch.save(tensors, metadata={"format": "pt"}),
        _CARD: peft_card(base_model_name, *tokens.shape).encode(),
    }
    replace_folder(Path(folder), files, overwrite=overwrite)


def _read_prompt_tuning(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> Tensor:
    length = config.get("num_virtual_tokens")
    if type(length) is not int or length < 1:
        raise PromptFileError(
            f"{folder}: num_virtual_tokens is {length!r} in {_CONFIG}; expected a whole number above 0"
        )
    prompt = tensors.get(_PROMPT)
    if prompt is None:
        found = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise PromptFileError(f"{folder} holds no tensor {_PROMPT!r}, only {found}")
    blocks = config.get("num_transformer_submodules")
    if blocks is None:
        blocks = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if blocks not in (1, 2):
        raise PromptFileError(
            f"{folder}: num_transformer_submodules is {blocks!r} in {_CONFIG}; expected 1 or 2"
        )
    width = config.get("token_dim") or (prompt.shape[-1] if prompt.dim() else 0)
    if tuple(prompt.shape) != (length * blocks, width) or not prompt.is_floating_point() or not width:
        raise PromptFileError(
            f"{folder}: {_PROMPT} is {prompt.dtype} of shape {tuple(prompt.shape)}, where {_CONFIG} asks for "
            f"floating point of shape ({length * blocks}, {width or 'd'}): {length} virtual tokens"
            + (" for encoder and decoder each" if blocks == 2 else "")
            + "; config and tensors are of different prompts"
        )
    # PEFT puts only the first block in front of an encoder-decoder's input; the second is never used.
    return prompt[:length].float().clone()


def _write_prompt_tuning(tokens: Tensor, shape: _Shape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    blocks = 2 if shape.task_type == "SEQ_2_SEQ_LM" else 1
    config = {
        "auto_mapping": None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_layers,
        "num_transformer_submodules": blocks,
        "num_virtual_tokens": tokens.shape[0],
        "peft_version": _PEFT_VERSION,
        "prompt_tuning_init": "RANDOM",  # any other makes PEFT look for a text or a tokenizer
        "prompt_tuning_init_text": None,
        "revision": None,
        "task_type": shape.task_type,
        "token_dim": tokens.shape[1],
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    return config, {_PROMPT: tokens.repeat(blocks, 1)}


_Reader = Callable[[Mapping[str, Any], Mapping[str, Tensor], str], Tensor]
_Writer = Callable[[Tensor, _Shape], tuple[dict[str, Any], dict[str, Tensor]]]
_FORMATS: dict[str, tuple[_Reader, _Writer]] = {
    "PROMPT_TUNING": (_read_prompt_tuning, _write_prompt_tuning),
}


def _known() -> str:
    return ", ".join(_FORMATS)


def _adapter_folder(folder: Path, adapter: str | None) -> Path:
    """PEFT writes an adapter that is not called "default" into a sub-folder of its name."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise PromptFileError(f"{folder} {what}; pass the folder that holds {_CONFIG}")
    named = sorted(path.parent.name for path in folder.glob(f"*/{_CONFIG}"))
    if adapter is not None:
        if adapter in named:
            return folder / adapter
        raise PromptFileError(f"{folder} has no adapter {adapter!r}; it has: {', '.join(named) or 'none'}")
    if (folder / _CONFIG).exists():
        return folder
    if len(named) == 1:
        return folder / named[0]
    if named:
        raise PromptFileError(f"{folder} holds several adapters; pass adapter= one of: {', '.join(named)}")
    if (folder / "prompt.json").exists():
        raise PromptFileError(f"{folder} is in softprompt's own format; read it with softprompt.store.load")
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise PromptFileError(f"{folder} holds no {_CONFIG}, so it is no PEFT folder; found {found}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptFileError(f"{path} cannot be read: {error.strerror}; copy the folder again") from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / _TENSORS
    if not path.exists():
        path = folder / _PICKLE
    if not path.exists():
        raise PromptFileError(f"{folder} has no {_TENSORS} (nor {_PICKLE}); copy the folder again")
    content = _read(path)
    try:
        if path.name == _TENSORS:
            tensors = safetensors.torch.load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the parsers raise many kinds, and with each of them the file is at fault
        reason = str(error).partition("\n")[0]
        raise PromptFileError(f"{path} cannot be read ({reason}); copy the folder again") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()
    ):
        raise PromptFileError(f"{path} holds something else than tensors by name")
    return tensors
