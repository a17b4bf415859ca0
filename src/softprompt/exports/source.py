"""What is exported, seen through what all forms need, and the folder that is written apart and put in place."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from softprompt.outputs import EncodedRow


class Source(Protocol):
    """A tuned prompt."""

    @property
    def backbone(self) -> Any: ...
    @property
    def task(self) -> Any: ...
    @property
    def method(self) -> Any: ...
    @property
    def module(self) -> Any: ...
    @property
    def head(self) -> Any: ...
    @property
    def encoder(self) -> Any: ...
    @property
    def model(self) -> Any: ...


def check_words(name: str, prompt: Source, form: str) -> None:
    """Raise ValueError for a prompt that is not answered by words of a decoder."""
    family = prompt.backbone.spec.family
    if family != "causal-lm":
        raise ValueError(
            f"{name} is on {prompt.backbone.name} ({family}), and {form} is for decoders: serve it with `softprompt serve`"
        )
    if prompt.head is not None or prompt.task.outputs is not None:
        raise ValueError(
            f"{name} answers by a head that was trained with it, which {form} does not hold: serve it with `softprompt serve`"
        )


def tokens_of(name: str, prompt: Source, form: str) -> Tensor:
    """The virtual tokens, (P, d) in the backbone's precision. Raises ValueError for a prompt that is more than them."""
    check_words(name, prompt, form)
    output = prompt.module.bake()() if prompt.module.reads is None else None
    others = () if output is None else (output.prefix, output.layers, output.offset, output.token_offset)
    if output is None or output.tokens is None or any(part is not None for part in others):
        raise ValueError(
            f"{name} ({prompt.method.name}) is more than virtual tokens, and {form} holds nothing else: serve it with"
            " `softprompt serve`, or tune with prompt-tuning, p-tuning or residual-prompt-tuning"
        )
    tokens: Tensor = output.tokens[0].detach().to(prompt.backbone.dtype)
    return tokens.cpu()


def row_of(prompt: Source, value: Mapping[str, Any] | None = None) -> EncodedRow:
    """A row as tokens, without its answer. value: None: words in every column."""
    task = prompt.task
    columns = [task.columns.get(name, name) for name in task.fields]
    found: EncodedRow = prompt.encoder.encode(
        value or dict.fromkeys(columns, "some words to read"), answer=False
    )
    return found


@torch.no_grad()
def embedded(prompt: Source, row: EncodedRow, tokens: Tensor) -> Tensor:
    """The input vectors of a row, virtual tokens among them, (T, d)."""
    table = prompt.backbone.model.get_input_embeddings()
    device = prompt.backbone.device
    parts = [
        tokens[-1 - atom].to(device) if atom < 0 else table(torch.tensor([atom], device=device))[0]
        for atom in row.context
    ]
    return torch.stack(parts)


@contextlib.contextmanager
def written_apart(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder beside `folder`, which takes its place at the end of the block; after an error nothing has changed.

    Raises FileExistsError for a folder that is not empty, unless it may be overwritten.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not overwrite:
        raise FileExistsError(
            f"{folder} is there already, and not empty: give another folder, or overwrite=True"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    place = folder.parent / f".softprompt-{secrets.token_hex(8)}.part"
    place.mkdir()
    old = place.with_suffix(".old")
    try:
        yield place
        if folder.exists():
            os.replace(folder, old)
        os.replace(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
