"""Attention over a PrefixTree, in place of a model's own attention function.

An attention implementation can be registered with transformers by name, and is passed every keyword of `model(...)`: that
is how the tree reaches the layers. The config of a view (view.py) names this implementation.

Letters: H query heads, Hkv key-value heads, R = H / Hkv, D head size; see tree.py for the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from softprompt.backbones.engine.tree import Level, PrefixTree
from softprompt.backbones.engine.view import configs_of
from softprompt.outputs import KeyValue

IMPLEMENTATION = "softprompt_tree"


class _Pad(torch.autograd.Function):
    """Packed tokens into a zero-filled grid. Backward picks them out again: each slot has one token, so no scatter-add."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor, size: int) -> Tensor:  # (H, n, D) -> (H, S*T, D)
        ctx.save_for_backward(slots)
        ctx.size = size
        return x.new_zeros(x.shape[0], size, x.shape[2]).index_copy_(1, slots, x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return _Unpad.apply(grads[0], slots), None, None


class _Unpad(torch.autograd.Function):
    """The inverse of _Pad."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slots: Tensor) -> Tensor:  # (H, S*T, D) -> (H, n, D)
        ctx.save_for_backward(slots)
        ctx.size = x.shape[1]
        return x.index_select(1, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slots,) = ctx.saved_tensors
        return _Pad.apply(grads[0], slots, ctx.size), None


def place_tokens(x: Tensor, slots: Tensor, size: int) -> Tensor:
    """Put tokens at their places among zeros, (H, n, D) -> (H, size, D). The `slots` (n,) must all be different."""
    placed: Tensor = _Pad.apply(x, slots, size)
    return placed


def pick_tokens(x: Tensor, slots: Tensor) -> Tensor:
    """The inverse of place_tokens, (H, size, D) -> (H, n, D)."""
    picked: Tensor = _Unpad.apply(x, slots)
    return picked


def to_grid(x: Tensor, level: Level) -> Tensor:
    """The tokens of a level as a padded grid, (H, n, D) -> (H, S, T, D)."""
    size = level.segments * level.width
    x = x if level.slots is None else place_tokens(x, level.slots, size)
    return x.reshape(x.shape[0], level.segments, level.width, x.shape[-1])


def from_grid(x: Tensor, level: Level) -> Tensor:
    """The inverse of to_grid, (H, S, T, D) -> (H, n, D)."""
    x = x.flatten(1, 2)
    return x if level.slots is None else pick_tokens(x, level.slots)


def of_parents(x: Tensor, parents: Tensor) -> Tensor:
    """The part of each segment's parent, (H, S_above, K, D) -> (H, S, K, D). A single parent is expanded, not copied."""
    if x.shape[1] == 1:
        return x.expand(-1, parents.shape[0], -1, -1)
    return x.index_select(1, parents)


def group_queries(q: Tensor, ratio: int) -> Tensor:
    """Lay the R queries that share a key-value head one after the other, so that keys need not be repeated.

    (H, S, T, D) -> (Hkv, S, R*T, D)
    """
    return q.unflatten(0, (-1, ratio)).transpose(1, 2).flatten(2, 3)


def ungroup_queries(x: Tensor, ratio: int) -> Tensor:
    """The inverse of group_queries, (Hkv, S, R*T, D) -> (H, S, T, D)."""
    return x.unflatten(2, (ratio, -1)).transpose(1, 2).flatten(0, 1)


def prefix_grid(prefix: Tensor) -> Tensor:
    """Keys or values of a prefix as a grid with a segment for each prompt, (G, Hkv, P, D) -> (Hkv, G, P, D)."""
    return prefix.transpose(0, 1)  # (G, Hkv, P, D) -> (Hkv, G, P, D)


def _level_masks(
    tree: PrefixTree, prefix_lengths: Tensor | None, prefix_width: int, window: int | None
) -> list[Tensor]:
    """For each level a mask (S, T, K) that says which keys (those above, then its own) each query sees.

    prefix_lengths  (G,) positions of each prompt's prefix; None: there is no prefix
    prefix_width    P, positions of the longest
    window          of sliding-window attention; None: attention reaches everywhere
    """
    masks: list[Tensor] = []
    device = tree.ids.device
    above: tuple[Tensor, Tensor] | None = None  # positions and validity of the keys above, (S_above, K) each
    if prefix_lengths is not None:
        places = torch.arange(prefix_width, device=device).expand(prefix_lengths.shape[0], -1)  # (G, P)
        above = places, places < prefix_lengths[:, None]
    for level, positions in zip(tree.levels, tree.level_positions, strict=True):
        lengths = torch.tensor(level.lengths, device=device)
        valid = torch.arange(level.width, device=device) < lengths[:, None]  # (S, T)
        grid = to_grid(positions[None, :, None], level)[0, :, :, 0]  # (n,) -> (S, T)
        keys, keys_valid = grid, valid
        if above is not None:
            parents = level.prompts if level.parents is None else level.parents
            keys = torch.cat([above[0][parents], grid], dim=1)  # (S, K)
            keys_valid = torch.cat([above[1][parents], valid], dim=1)
        distance = grid[:, :, None] - keys[:, None, :]  # (S, T, K)
        mask = keys_valid[:, None, :].expand_as(distance)
        if not level.both_ways:
            mask = mask & (distance >= 0)
        if window is not None:
            mask = mask & (distance.abs() < window)
        # Padding queries are dropped later. But a query that sees no key gives NaN, and NaN * 0 is NaN in backward.
        itself = torch.eye(level.width, dtype=torch.bool, device=device) & ~valid[:, :, None]
        mask = torch.cat([mask[..., : -level.width], mask[..., -level.width :] | itself], dim=2)
        masks.append(mask)
        above = keys, keys_valid
    return masks


class TreeCall:
    """A tree with the key-value prefixes in front of it, for one pass through the layers."""

    def __init__(
        self, tree: PrefixTree, prefix: tuple[KeyValue, ...] | None = None, lengths: Tensor | None = None
    ) -> None:
        self.tree = tree
        self.prefix = prefix
        self.lengths = lengths
        self.windows_seen: list[int | None] = []
        self._masks: dict[tuple[int | None, int, torch.dtype], list[Tensor]] = {}

    def masks(self, window: int | None, ratio: int, dtype: torch.dtype) -> list[Tensor]:
        """Additive masks (1, S, R*T, K) of all levels, computed once per pass for each kind of layer."""
        key = (window, ratio, dtype)
        if key not in self._masks:
            width = 0 if self.prefix is None else self.prefix[0][0].shape[2]
            built = _level_masks(self.tree, self.lengths, width, window)
            zero = torch.zeros((), dtype=dtype, device=self.tree.ids.device)
            self._masks[key] = [
                torch.where(mask, zero, float("-inf")).repeat(1, ratio, 1)[None] for mask in built
            ]
        return self._masks[key]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the layout of a batch is plain Python, and each new layout would be compiled again
def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt_tree: TreeCall,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over the tree: query (1, H, N, D), key and value (1, Hkv, N, D) -> (1, N, H, D).

    Each segment attends to the segments above it and, causally, to itself.
    """
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise NotImplementedError("attention sinks and position biases are not known to the packed attention")
    tree = prompt_tree.tree
    prompt_tree.windows_seen.append(sliding_window)
    ratio = query.shape[1] // key.shape[1]
    sizes = [level.tokens for level in tree.levels]
    masks = prompt_tree.masks(sliding_window, ratio, query.dtype)
    above: tuple[Tensor, Tensor] | None = None
    if prompt_tree.prefix is not None:
        prefix_key, prefix_value = prompt_tree.prefix[module.layer_idx]  # type: ignore[index]
        above = prefix_grid(prefix_key.to(key.dtype)), prefix_grid(prefix_value.to(value.dtype))
    outputs = []
    parts = zip(query[0].split(sizes, 1), key[0].split(sizes, 1), value[0].split(sizes, 1), strict=True)
    for level, mask, (q, k, v) in zip(tree.levels, masks, parts, strict=True):
        q, k, v = (
            to_grid(q, level),
            to_grid(k, level),
            to_grid(v, level),
        )  # (H, S, T, D), (Hkv, S, T, D) twice
        if above is not None:
            parents = level.prompts if level.parents is None else level.parents
            k = torch.cat([of_parents(above[0], parents), k], dim=2)  # (Hkv, S, K, D)
            v = torch.cat([of_parents(above[1], parents), v], dim=2)
        above = k, v
        out = attend(group_queries(q, ratio), k, v, mask, scaling, softcap)
        outputs.append(from_grid(ungroup_queries(out, ratio), level))
    merged = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)  # (H, N, D)
    return merged.transpose(0, 1)[None], None


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """Attention of (Hkv, S, R*T, D) queries over (Hkv, S, K, D) keys under an additive mask, if any."""
    half_on_cpu = q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)
    if softcap is None and not half_on_cpu:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling)
    # On CPUs the fused kernel's backward takes twice as long in bfloat16 as three plain products.
    return _attend_by_products(q, k, v, mask, scaling, softcap)


def _attend_by_products(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """The same by plain products, with Gemma 2's soft cap on the scores."""
    scores = (q * (q.shape[-1] ** -0.5 if scaling is None else scaling)) @ k.transpose(-2, -1)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ v


def attend_over_trees(view: nn.Module) -> None:
    """Let a view attend over the tree that each call gives it as `prompt_tree=`."""
    use_attention(view, IMPLEMENTATION, tree_attention)


def use_attention(view: nn.Module, name: str, attention: Callable[..., tuple[Tensor, None]]) -> None:
    """Let the layers of a view call an attention function of ours.

    view       of a model of transformers; its configs are its own
    name       that the function is registered by
    attention  called by every layer
    """
    AttentionInterface.register(name, attention)
    for config in configs_of(view):
        config._attn_implementation = name
