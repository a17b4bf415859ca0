"""Whether a backbone is the one that a prompt was trained on.

Letters: V vocabulary (rows of the embedding table), d width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from softprompt.store.plain_json import digest

# Keys that may differ between two loadings of one model without changing what its frozen trunk computes: precision
# and kernels, the head, and ids that only generation and padding use (people set `config.pad_token_id` by hand). Private
# keys (`_name_or_path`, `_attn_implementation`) are dropped as well.
_VOLATILE = frozenset({
    "transformers_version", "dtype", "torch_dtype", "name_or_path", "attn_implementation",
    "quantization_config", "use_cache", "output_attentions", "output_hidden_states", "return_dict",
    "architectures", "auto_map", "id2label", "label2id", "num_labels", "problem_type",
    "pad_token_id", "bos_token_id", "eos_token_id",
})  # fmt: skip

_ROWS = 4096  # rows of the table that are hashed at a time, so that a large one is not copied whole


@dataclass(frozen=True)
class BackboneIdentity:
    """How the backbone that a prompt was trained on is recognised. Digests are sha256, in hexadecimal.

    name              as the backbone was loaded; for people, not compared
    family            e.g. `causal-lm`
    width             d, of the input embeddings
    vocabulary        V, rows of the embedding table
    config_digest     see `config_digest`
    table_digest      see `table_digest`
    tokenizer_digest  see `tokenizer_digest`; None where the backbone has no tokenizer
    revision          commit of a hub model, for loading it again; not compared
    """

    name: str
    family: str
    width: int
    vocabulary: int
    config_digest: str
    table_digest: str
    tokenizer_digest: str | None = None
    revision: str | None = None


def fingerprint(
    config: PreTrainedConfig,
    table: Tensor,
    *,
    name: str,
    family: str,
    vocabulary: Mapping[str, Any] | None = None,
) -> BackboneIdentity:
    """The identity of a backbone from its config and its input embedding table, (V, d), unscaled.

    config      of the model
    table       its input embedding table
    name        of the backbone
    family      of the backbone
    vocabulary  the tokenizer's `get_vocab()`, and, for a backbone that reads images, how these are prepared

    Two models with the same config and the same table count as one, so a fine-tuned model whose embeddings were frozen
    is not distinguished from the original.
    Raises ValueError if the table is not a (V, d) tensor of floating-point numbers.
    """
    return BackboneIdentity(
        name=name,
        family=family,
        width=table.shape[-1],
        vocabulary=table.shape[0],
        config_digest=config_digest(config),
        table_digest=table_digest(table),
        tokenizer_digest=None if vocabulary is None else tokenizer_digest(vocabulary),
        revision=getattr(config, "_commit_hash", None),
    )


def config_digest(config: PreTrainedConfig) -> str:
    """Digest of what the config says about the computation: without volatile keys and without defaults.

    Defaults are left out because a later transformers may add a setting, whose default is what models did
    before it existed.
    """
    return digest(_distinctive(config), ordered=False)


def table_digest(table: Tensor) -> str:
    """Digest of the embedding table (V, d), rounded to bfloat16.

    It is rounded because a prompt serves a trunk in bfloat16 on one machine and in float32 on the next: float32 and
    float16 values round to those of a loading in bfloat16. Two roundings in a row (float32 weights loaded in float16)
    can differ from one in the last bit: such a trunk has another digest.
    Raises ValueError if the table is not a (V, d) tensor of floating-point numbers.
    """
    if table.dim() != 2 or not table.is_floating_point():
        raise ValueError(
            f"the embedding table is a {table.dtype} tensor of shape {tuple(table.shape)}; expected a "
            "floating-point one of shape (V, d): pass get_input_embeddings().weight, dequantized if need be"
        )
    sha = hashlib.sha256(repr(tuple(table.shape)).encode())
    for rows in table.detach().split(_ROWS):
        sha.update(
            rows.to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().astype("<i2").tobytes()
        )
    return sha.hexdigest()


def tokenizer_digest(vocabulary: Mapping[str, Any]) -> str:
    """Digest of a tokenizer's pieces with their ids, `tokenizer.get_vocab()`, or of how images are prepared."""
    return digest(dict(vocabulary), ordered=False)


def _distinctive(config: PreTrainedConfig) -> dict[str, Any]:
    values = json.loads(config.to_json_string())
    try:
        defaults = json.loads(type(config)().to_json_string())
    except Exception:  # a config of custom code may have no defaults, and may raise anything
        defaults = {}
    kept = {}
    for key, value in values.items():
        nested = getattr(config, key, None)
        if isinstance(nested, PreTrainedConfig):
            kept[key] = _distinctive(nested)
        elif key == "model_type" or not (
            key in _VOLATILE or key.startswith("_") or (key in defaults and defaults[key] == value)
        ):
            kept[key] = value
    return kept
