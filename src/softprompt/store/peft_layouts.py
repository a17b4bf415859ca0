"""The tensors and the config fields of each of PEFT's prompt types.

Letters: P virtual tokens or prefix positions, d width, W numbers in a row of a prefix, K tasks, Hkv key-value heads, D head
size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softprompt.store.errors import PromptFileError

PROMPT = "prompt_embeddings"
CONFIG = "adapter_config.json"

# The release whose complete set of fields is written here. Both directions are tested against it.
_PEFT_VERSION = "0.21.2"


_TWO_SIDED_MULTITASK = (
    "PEFT's multitask prompt of an encoder-decoder has a second half that stands in front of the decoder in training and is "
    "left out in generation: no prompt here does both; save a PROMPT_TUNING for each task"
)


@dataclass(frozen=True, eq=False)
class PeftContent:
    """The learned tensors.

    tokens  virtual tokens (P, d), or (K, P, d) in a file for K tasks; None: there are none
    prefix  keys and values (P, W); None: there are none
    frozen  number of rows at the beginning of the prefix that were not trained
    head    tensors of a trained head, under PEFT's names
    """

    tokens: Tensor | None = None
    prefix: Tensor | None = None
    frozen: int = 0
    head: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PeftShape:
    """The facts of a model that its file needs. The heads are key-value heads for a prefix, otherwise query heads."""

    task_type: str
    num_layers: int
    num_attention_heads: int


def _read_tokens(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> PeftContent:
    length, prompt = _prompt(config, tensors, folder)
    blocks = config.get("num_transformer_submodules")
    if blocks is None:
        blocks = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    if blocks not in (1, 2):
        raise PromptFileError(
            f"{folder}: num_transformer_submodules is {blocks!r} in {CONFIG}; expected 1 or 2"
        )
    width = config.get("token_dim") or (prompt.shape[-1] if prompt.dim() else 0)
    if tuple(prompt.shape) != (length * blocks, width) or not prompt.is_floating_point() or not width:
        raise PromptFileError(
            f"{folder}: {PROMPT} is {prompt.dtype} of shape {tuple(prompt.shape)}, where {CONFIG} asks for "
            f"floating point of shape ({length * blocks}, {width or 'd'}): {length} virtual tokens"
            + (" for encoder and decoder each" if blocks == 2 else "")
            + "; config and tensors are of different prompts"
        )
    # PEFT puts only the first block in front of the input of an encoder-decoder; the second is never used.
    return PeftContent(tokens=prompt[:length].float().clone())


def _read_multitask(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> PeftContent:
    """The tokens of task k are the shared tokens times, element by element, the low-rank product of its columns and rows."""
    shared = _read_tokens(config, tensors, folder).tokens
    if shared is not None and len(shared) != len(tensors[PROMPT]):
        raise PromptFileError(f"{folder}: {_TWO_SIDED_MULTITASK}")
    columns, rows = tensors.get("prefix_task_cols"), tensors.get("prefix_task_rows")
    assert shared is not None
    if (
        columns is None
        or rows is None
        or columns.dim() != 3
        or columns.shape[1] != len(tensors[PROMPT])
        or tuple(rows.shape) != (len(columns), columns.shape[2], shared.shape[1])
        or not len(columns)
    ):
        found = {
            key: None if tensor is None else tuple(tensor.shape)
            for key, tensor in (("prefix_task_cols", columns), ("prefix_task_rows", rows))
        }
        raise PromptFileError(
            f"{folder}: a multitask prompt of shape {tuple(tensors[PROMPT].shape)} needs prefix_task_cols (tasks, "
            f"{len(tensors[PROMPT])}, rank) and prefix_task_rows (tasks, rank, {shared.shape[1]}); found {found}"
        )
    factors = columns.float() @ rows.float()  # (K, P, r) x (K, r, d) -> (K, P, d)
    return PeftContent(tokens=shared * factors)


def _read_prefix(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> PeftContent:
    length, prompt = _prompt(config, tensors, folder)
    layers, size = config.get("num_layers"), config.get("token_dim")
    width, where = (prompt.shape[-1] if prompt.dim() else 0), ""
    if type(layers) is int and type(size) is int:
        width, where = 2 * layers * size, f" in {layers} layers"
    if tuple(prompt.shape) != (length, width) or not prompt.is_floating_point() or not width:
        raise PromptFileError(
            f"{folder}: {PROMPT} is {prompt.dtype} of shape {tuple(prompt.shape)}, where {CONFIG} asks for floating "
            f"point of shape ({length}, {width or '2 * layers * key-value width'}): {length} positions of keys and "
            f"values{where}; config and tensors are of different prompts"
        )
    return PeftContent(prefix=prompt.float().clone())


def _read_cartridge(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> PeftContent:
    rows = _read_prefix(config, tensors, folder).prefix
    assert rows is not None
    frozen = config.get("num_frozen_tokens", 1)
    if type(frozen) is not int or not 0 <= frozen <= len(rows):
        raise PromptFileError(
            f"{folder}: num_frozen_tokens is {frozen!r} in {CONFIG}; expected 0 to {len(rows)}, its virtual tokens"
        )
    return PeftContent(prefix=rows, frozen=frozen)


def _prompt(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: str) -> tuple[int, Tensor]:
    """P, and the prompt's tensor, whose shape is not checked yet."""
    length = config.get("num_virtual_tokens")
    if type(length) is not int or length < 1:
        raise PromptFileError(
            f"{folder}: num_virtual_tokens is {length!r} in {CONFIG}; expected a whole number above 0"
        )
    prompt = tensors.get(PROMPT)
    if prompt is None:
        found = ", ".join(sorted(tensors)[:5]) or "nothing"
        raise PromptFileError(f"{folder} holds no tensor {PROMPT!r}, only {found}")
    return length, prompt


def _write_tokens(content: PeftContent, shape: PeftShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    assert content.tokens is not None
    length, width = content.tokens.shape
    own = {
        "prompt_tuning_init": "RANDOM",  # with any other value PEFT looks for a text or a tokenizer
        "prompt_tuning_init_text": None,
        "tokenizer_kwargs": None,
        "tokenizer_name_or_path": None,
    }
    fields = _common(shape, length, width)
    return fields | own, {PROMPT: content.tokens.repeat(fields["num_transformer_submodules"], 1)}


def _write_multitask(content: PeftContent, shape: PeftShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Write any K prompts exactly: the shared tokens are ones, and each task's columns pick its rows, which are its tokens."""
    assert content.tokens is not None
    tasks, length, width = content.tokens.shape
    fields, _ = _write_tokens(PeftContent(tokens=content.tokens[0]), shape)
    if fields["num_transformer_submodules"] == 2:
        raise ValueError(_TWO_SIDED_MULTITASK)
    own = {
        "num_ranks": length,
        "num_tasks": tasks,
        "prompt_tuning_init_state_dict_path": None,
        "prompt_tuning_init_task": 0,
    }
    return fields | own, {
        PROMPT: torch.ones(length, width),
        "prefix_task_cols": torch.eye(length).repeat(tasks, 1, 1),  # (P, P) -> (K, P, P)
        "prefix_task_rows": content.tokens,  # (K, P, d)
    }


def _write_p_tuning(content: PeftContent, shape: PeftShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    assert content.tokens is not None
    length, width = content.tokens.shape
    own = {  # settings of the encoder, which PEFT neither saves nor builds for inference
        "encoder_dropout": 0.0,
        "encoder_hidden_size": width,
        "encoder_num_layers": 2,
        "encoder_reparameterization_type": "MLP",
    }
    fields = _common(shape, length, width)
    return fields | own, {PROMPT: content.tokens.repeat(fields["num_transformer_submodules"], 1)}


def _write_prefix(content: PeftContent, shape: PeftShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    assert content.prefix is not None
    width = content.prefix.shape[1] // (2 * shape.num_layers)
    own = {"encoder_hidden_size": width, "init_weights": None, "prefix_projection": False}
    fields = _common(shape, len(content.prefix), width) | own | _saved_modules(content)
    return fields, {PROMPT: content.prefix, **content.head}


def _write_cartridge(content: PeftContent, shape: PeftShape) -> tuple[dict[str, Any], dict[str, Tensor]]:
    assert content.prefix is not None
    width = content.prefix.shape[1] // (2 * shape.num_layers)
    own = {"num_frozen_tokens": content.frozen}
    fields = _common(shape, len(content.prefix), width) | own | _saved_modules(content)
    return fields, {PROMPT: content.prefix, **content.head}


def _saved_modules(content: PeftContent) -> dict[str, Any]:
    """The field `modules_to_save` with PEFT's names of the head's modules; empty without a head."""
    names = sorted({key.split(".")[1] for key in content.head})
    return {"modules_to_save": names} if names else {}


def _common(shape: PeftShape, length: int, width: int) -> dict[str, Any]:
    """The fields that all prompt types have.

    shape   of the model
    length  P
    width   d, or Hkv * D for keys and values
    """
    return {
        "auto_mapping": None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_attention_heads": shape.num_attention_heads,
        "num_layers": shape.num_layers,
        "num_transformer_submodules": 2 if shape.task_type == "SEQ_2_SEQ_LM" else 1,
        "num_virtual_tokens": length,
        "peft_version": _PEFT_VERSION,
        "revision": None,
        "task_type": shape.task_type,
        "token_dim": width,
    }


_Reader = Callable[[Mapping[str, Any], Mapping[str, Tensor], str], PeftContent]
_Writer = Callable[[PeftContent, PeftShape], tuple[dict[str, Any], dict[str, Tensor]]]
LAYOUTS: dict[str, tuple[_Reader, _Writer]] = {
    "PROMPT_TUNING": (_read_tokens, _write_tokens),
    "P_TUNING": (_read_tokens, _write_p_tuning),
    "MULTITASK_PROMPT_TUNING": (_read_multitask, _write_multitask),
    "PREFIX_TUNING": (_read_prefix, _write_prefix),
    "CARTRIDGE": (_read_cartridge, _write_cartridge),
}
