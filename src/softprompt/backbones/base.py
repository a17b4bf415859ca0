"""What a backbone is to the rest of the library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


@dataclass(frozen=True)
class BackboneSpec:
    """The facts of a frozen model that a method may know: it never sees the model itself.

    width             d, of the input embeddings
    vocabulary        V, rows of the embedding table
    key_values        per layer (Hkv, D), the shape of a key-value prefix
    positions         longest sequence in tokens, virtual tokens included; None: no limit
    embedding_std     standard deviation of the embedding table as the model uses it: the scale of a virtual token
    embed             token ids (n,) -> (n, d) float32, a copy, as the model embeds them (scaled, where it scales)
    tokenize          text -> token ids, no special tokens
    special_ids       ids that are no words (padding, begin, end ...)
    """

    name: str
    family: str
    width: int
    vocabulary: int
    key_values: tuple[tuple[int, int], ...]
    positions: int | None
    embedding_std: float
    embed: Callable[[Tensor], Tensor]
    tokenize: Callable[[str], list[int]]
    special_ids: frozenset[int]


class Backbone(Protocol):
    """A frozen model with its tokenizer, seen through the few calls that the library makes."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> BackboneSpec: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def device(self) -> torch.device: ...

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
        """Logits for every target token of every row, differentiable in the prompt."""
        ...

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> PromptOutput:
        """The part of the prompts that is computed once, reduced to what later calls need (keys and values)."""
        ...

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        """New token ids for each row; `options` are those of transformers' `generate`."""
        ...
