"""Virtual tokens and prefixes of saved prompts, as initial values of others."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from softprompt.store.errors import PromptFileError
from softprompt.store.folders import standing
from softprompt.store.format import load
from softprompt.store.peft import read_peft


def load_tokens(folder: str | Path) -> Tensor:
    """Virtual tokens (P, d) of a prompt that this library or PEFT wrote.

    Raises PromptFileError if the folder is neither, is damaged, or holds a prompt without virtual tokens.
    """
    if (standing(Path(folder)) / "adapter_config.json").exists():
        read = read_peft(folder)
        if read.tokens is None:
            raise PromptFileError(f"{folder}: a {read.peft_type} prompt has no virtual tokens to start from")
        return read.tokens
    saved = load(folder)
    tokens = saved.tensors.get("prompt.tokens")
    if tokens is None or not len(tokens):
        raise PromptFileError(
            f"{folder}: a {saved.method['name']} prompt has no virtual tokens to start from"
        )
    return tokens


def load_prefix(folder: str | Path) -> Tensor:
    """Keys and values (P, W) of a prefix that this library or PEFT wrote, one row per position; see prompts/prefix.py.

    Raises PromptFileError if the folder is neither, is damaged, or holds a prompt that is no prefix.
    """
    if (standing(Path(folder)) / "adapter_config.json").exists():
        read = read_peft(folder)
        if read.prefix is None:
            raise PromptFileError(f"{folder}: a {read.peft_type} prompt has no keys and values to start from")
        return read.prefix
    saved = load(folder)
    rows, frozen = saved.tensors.get("prompt.rows.weight"), saved.tensors.get("prompt.frozen")
    if rows is None:
        raise PromptFileError(
            f"{folder}: a {saved.method['name']} prompt has no keys and values to start from"
        )
    return rows if frozen is None else torch.cat([frozen, rows])
