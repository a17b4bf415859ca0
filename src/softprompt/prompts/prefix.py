"""Key-value prefixes: the module that all their methods build, and its initial values.

A row of a prefix is one position in all layers, with W numbers: [entry of spec.key_values][key, value][head][number].
PEFT's files have the same layout. If a model has several kinds of attention (encoder, decoder, cross), each is an entry with
a prefix of its own.

Letters: P positions of the prefix, F frozen positions among them, W numbers of a row, k width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import KeyValue, PromptOutput
from softprompt.prompts import initialization as initial
from softprompt.prompts.base import PromptModule

PROBE = (
    64  # common words whose keys and values give the scale of each layer, from thousands of numbers per layer
)


def row_width(spec: BackboneSpec) -> int:
    """Return W, the number of numbers in a row."""
    return sum(2 * heads * size for heads, size in spec.key_values)


def split_rows(rows: Tensor, shapes: Sequence[tuple[int, int]]) -> tuple[KeyValue, ...]:
    """Split rows (P, W): for each entry (Hkv, D) of `shapes` return its keys and values, (1, Hkv, P, D) each."""
    parts = rows.split([2 * heads * size for heads, size in shapes], dim=1)
    prefix = []
    for part, (heads, size) in zip(parts, shapes, strict=True):
        key, value = part.view(len(rows), 2, heads, size).permute(1, 2, 0, 3)  # (P, W_i) -> (2, Hkv, P, D)
        prefix.append((key[None], value[None]))
    return tuple(prefix)


def join_rows(prefix: Sequence[KeyValue]) -> Tensor:
    """Join keys and values into rows (P, W); the inverse of `split_rows`."""
    parts = [
        part[0].transpose(0, 1).flatten(1) for pair in prefix for part in pair
    ]  # (1, Hkv, P, D) -> (P, Hkv*D)
    return torch.cat(parts, dim=1)


class FreeRows(nn.Module):
    """Keys and values as they are used, (P, W). A baked prefix has this form."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows.float())

    def forward(self) -> Tensor:
        return self.weight


class ScaledRows(nn.Module):
    """Keys and values in units of the model's own, (P, W), so that one learning rate fits every layer of every model."""

    scale: Tensor

    def __init__(self, rows: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.weight = nn.Parameter(rows / scale)

    def forward(self) -> Tensor:
        return self.weight * self.scale


class MLPRows(nn.Module):
    """Rows start + scale * (W2 tanh(W1 p + b1) + b2), for each row p of P' in R^(P x k').

    `scale` is that of the model's own keys and values. With a start, the last layer begins at zero, so that the prefix begins
    exactly at `start`; without one (start=None) the prefix is the output of the MLP, as in the paper.
    """

    start: Tensor | None
    scale: Tensor

    def __init__(
        self, inputs: Tensor, hidden: int, start: Tensor | None, scale: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("start", start)
        self.register_buffer("scale", scale)
        self.inputs = nn.Parameter(inputs)
        self.first = _linear(inputs.shape[1], hidden, generator)
        self.second = _linear(hidden, len(scale), generator)
        if start is not None:
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self) -> Tensor:
        change: Tensor = self.scale * self.second(torch.tanh(self.first(self.inputs)))  # (P, k') -> (P, W)
        return change if self.start is None else self.start + change


def _linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with torch's own initialisation, drawn from `generator`."""
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
    bound = 1 / math.sqrt(inputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    return layer


class KeyValuePrefix(PromptModule):
    """P positions of keys and values in front of every layer; the first F stay as they are.

    rows     gives the (P - F, W) that are learned
    frozen   (F, W), or None
    dropout  of single numbers of the prefix while gradients are recorded
    """

    length = 0
    frozen: Tensor | None

    def __init__(
        self,
        rows: FreeRows | ScaledRows | MLPRows,
        shapes: Sequence[tuple[int, int]],
        frozen: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("frozen", frozen)
        self.shapes = tuple(shapes)
        self.dropout = dropout
        learned = rows.inputs if isinstance(rows, MLPRows) else rows.weight
        self.prefix_length = len(learned) + (0 if frozen is None else len(frozen))

    def forward(self) -> PromptOutput:
        rows = self.rows()
        if self.frozen is not None:
            rows = torch.cat([self.frozen, rows])  # (F, W), (P - F, W) -> (P, W)
        if self.dropout and torch.is_grad_enabled():
            rows = functional.dropout(rows, self.dropout)
        return PromptOutput(prefix=split_rows(rows, self.shapes))

    def bake(self) -> KeyValuePrefix:
        return KeyValuePrefix(FreeRows(self.rows().detach()), self.shapes, self.frozen)


def restore_prefix(spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> KeyValuePrefix:
    """Return the module whose baked `state_dict()` is `tensors`. Raises ValueError for rows of another width."""
    rows, frozen = tensors["rows.weight"], tensors.get("frozen")
    check_width(spec, rows)
    return KeyValuePrefix(FreeRows(rows), spec.key_values, frozen)


def check_width(spec: BackboneSpec, rows: Tensor) -> None:
    """Raise ValueError if rows (n, W) do not fit this backbone."""
    if rows.ndim != 2 or rows.shape[1] != row_width(spec):
        raise ValueError(
            f"the prefix has shape {tuple(rows.shape)}, {spec.name} needs (n, {row_width(spec)}): keys and values of "
            f"{len(spec.key_values)} layers"
        )


def starting_rows(
    spec: BackboneSpec,
    length: int,
    init: str,
    text: str | None,
    prompt: Path | None,
    generator: torch.Generator,
) -> Tensor:
    """Return the initial values of a prefix, (P, W) float32.

    Arguments:
        spec: the facts of the backbone
        length: P, the number of positions
        init: "vocab", the keys and values that the model computes for distinct common words; "text", those for a text,
            repeated or cut to P tokens; "prompt", those of a saved prefix, repeated or cut; "random", noise of their scale
        text: the text of init="text"
        prompt: the folder of init="prompt"
        generator: the source of randomness

    Raises:
        ValueError: for a prefix that leaves no room for text, and what the functions of `initialization` raise
    """
    if spec.positions is not None and length >= spec.positions:
        raise ValueError(
            f"a prefix of {length} positions leaves no room for text: {spec.name} has {spec.positions} positions"
        )
    match init:
        case "random":
            return torch.randn(length, row_width(spec), generator=generator) * own_scale(spec)
        case "prompt":
            from softprompt.store import load_prefix

            assert prompt is not None
            rows = load_prefix(prompt)
            check_width(spec, rows)
            return rows.float()[torch.arange(length) % len(rows)].clone()
        case "text":
            assert text is not None
            ids = initial.text_ids(spec, length, text)
        case _:
            ids = initial.sampled_ids(spec, length, generator)
    if spec.key_values_of is None:
        raise ValueError(f'{spec.name} cannot compute keys and values of a text: choose init="random"')
    return join_rows(spec.key_values_of(ids))


def own_scale(spec: BackboneSpec) -> Tensor:
    """Return the standard deviation of the model's own keys and values, layer by layer, for each number of a row, (W,).

    It is measured on common words, without the first position, which many models use as an attention sink. It is 1
    everywhere if the backbone cannot compute its keys and values.
    """
    if spec.key_values_of is None:
        return torch.ones(row_width(spec))
    words = initial.common_words(spec)
    count = min(PROBE, len(words), spec.positions or PROBE)
    ids = torch.tensor(words[:: max(1, len(words) // count)][:count])
    parts = []
    for pair in spec.key_values_of(ids):
        for part in pair:  # (1, Hkv, n, D)
            std = part[:, :, 1:].std().clamp(min=1e-6)
            parts.append(std.expand(part.shape[1] * part.shape[3]))
    return torch.cat(parts)


def unsupported_prefix(spec: BackboneSpec) -> str | None:
    """Return why a key-value prefix is not defined on a backbone; None if it is defined."""
    if not spec.key_values:
        return "not every layer of it keeps keys and values of its own that can be reached for a prefix to stand in front of"
    return None
