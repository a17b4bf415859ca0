"""The batch of an encoder: rows stand one after the other in a single sequence, and each attends to itself, both ways.

Linear layers and norms compute each token once and no padding; only attention works on a padded grid, where padding is
masked. Rows share nothing of a prompt but its key-value prefix: the state of a virtual token depends on its row.

Letters: N packed tokens, S rows, T tokens of the longest, P positions of the longest prefix, R = H / Hkv; H, Hkv, D, d as
everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.backbones.engine import (
    PrefixTree,
    Views,
    attend,
    build_tree,
    checkpointed_layers,
    embed_tree,
    from_grid,
    frozen_linears,
    group_queries,
    last_layer_only_at,
    make_recomputable,
    make_shortened,
    of_parents,
    prefix_grid,
    prefix_sizes,
    to_grid,
    ungroup_queries,
    use_attention,
)
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput

IMPLEMENTATION = "softprompt_rows"

Place = tuple[int, int]
"""A row of the batch, and a position in its context."""


class RowsCall:
    """Packed rows with the prefixes in front of them, for one pass through the layers."""

    def __init__(
        self,
        tree: PrefixTree,
        prefix: tuple[KeyValue, ...] | None,
        lengths: Tensor | None,
        *,
        keep: bool = False,
    ) -> None:
        """Begin a pass.

        tree     the packed rows
        prefix   per layer, keys and values of each prompt; None: there are none
        lengths  (G,) positions of each prompt's prefix; None: they are all of one length
        keep     whether the keys and values that each layer computes are collected in `key_values`
        """
        self.level = tree.levels[0]
        self.device = tree.ids.device
        self.prefix = prefix
        self.lengths = lengths
        self.key_values: list[KeyValue] | None = [] if keep else None
        self.was_reached = False
        self.layers: list[int] = []  # ids of attention modules, in the order of the layers
        self._masks: dict[tuple[int | None, int, torch.dtype], Tensor | None] = {}

    def number(self, module: nn.Module) -> int:
        """The number of the layer whose attention `module` is. Not all modules know it, but all models run them in order."""
        if self.prefix is None or len(self.layers) < len(self.prefix):
            self.layers.append(id(module))
            return len(self.layers) - 1
        if self.layers.count(id(module)) > 1:
            raise ValueError(
                "the layers of this model share their weights: a key-value prefix cannot be trained with"
                " gradient_checkpointing there; leave it off"
            )
        return self.layers.index(id(module))  # the layer is recomputed in backward

    def mask(self, window: int | None, ratio: int, dtype: torch.dtype) -> Tensor | None:
        """Additive mask (1, S, R*T, P + T) or, without windows, (1, S, 1, P + T); None if every key is seen.

        window  of sliding-window attention; None: attention reaches everywhere
        ratio   R
        dtype   of the mask
        """
        key = (window, ratio, dtype)
        if key not in self._masks:
            mask = self._mask(window, dtype)
            # Each of the R queries that share a key-value head has the same window.
            self._masks[key] = mask if mask is None or window is None else mask.repeat(1, 1, ratio, 1)
        return self._masks[key]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        level = self.level
        if level.slots is None and window is None and self.lengths is None:
            return None
        places = torch.arange(level.width, device=self.device)
        lengths = torch.tensor(level.lengths, device=self.device)
        seen = (places < lengths[:, None])[:, None, :]  # (S, 1, T)
        if window is not None:
            seen = seen & ((places[:, None] - places[None, :]).abs() < window)  # (S, T, T)
            # A padding query far from its row would see no key and give NaN, and NaN * 0 is NaN in backward.
            seen = seen | torch.eye(level.width, dtype=torch.bool, device=self.device)
        if self.prefix is not None:
            width = self.prefix[0][0].shape[2]
            before = torch.arange(width, device=self.device)
            if self.lengths is None:
                there = torch.ones(level.segments, width, dtype=torch.bool, device=self.device)
            else:
                there = before < self.lengths.to(self.device)[level.prompts][:, None]  # (S, P)
            # A window is measured by places in the text. A prefix has none, so it is seen from everywhere.
            seen = torch.cat([there[:, None, :].expand(-1, seen.shape[1], -1), seen], dim=2)
        zero = torch.zeros((), dtype=dtype, device=self.device)
        return torch.where(seen, zero, float("-inf"))[None]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the layout of a batch is plain Python, as in engine/attention.py
def rows_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt_rows: RowsCall,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed rows: query (1, H, N, D), key and value (1, Hkv, N, D) -> (1, N, H, D).

    Each row attends to its prefix and to itself. A token sees tokens less than `sliding_window` away, as in the
    bidirectional layers of transformers.
    """
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("position biases are not known to the packed attention")
    call, level = prompt_rows, prompt_rows.level
    call.was_reached = True
    number = call.number(module)
    if call.key_values is not None:
        call.key_values.append((key, value))
    q, k, v = (to_grid(x[0], level) for x in (query, key, value))  # (H, S, T, D), (Hkv, S, T, D) twice
    if call.prefix is not None:
        before = (
            prefix_grid(part.to(k.dtype)) for part in call.prefix[number]
        )  # (G, Hkv, P, D) -> (Hkv, G, P, D)
        k, v = (
            torch.cat([of_parents(p, level.prompts), x], dim=2) for p, x in zip(before, (k, v), strict=True)
        )
    ratio = q.shape[0] // k.shape[0]
    out = attend(group_queries(q, ratio), k, v, call.mask(sliding_window, ratio, q.dtype), scaling, softcap)
    return from_grid(ungroup_queries(out, ratio), level).transpose(0, 1)[None], None


_KNOWN: ContextVar[Any] = ContextVar("output that the trunk gives without being run", default=None)


@contextmanager
def trunk_gives(output: Any) -> Iterator[None]:
    """Within the block the trunk of a view returns this, of states (1, U, d), whatever its input: the model runs its head
    alone."""
    token = _KNOWN.set(output)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _trunk_forward(forward: Any, *args: Any, **kwargs: Any) -> Any:
    known = _KNOWN.get()
    return forward(*args, **kwargs) if known is None else known


def masked_views(model: PreTrainedModel) -> Views:
    """The views that an Encoder runs: "packed", "compiled" (the same for torch.compile), and "plain" with the model's own
    attention."""

    def packed(view: Any) -> None:
        use_attention(view, IMPLEMENTATION, rows_attention)
        make_shortened(view)
        make_recomputable(view)
        trunk = view.base_model
        trunk.forward = partial(_trunk_forward, trunk.forward)  # hides the class's forward

    def compiled(view: Any) -> None:  # what is switched on by a call would be compiled into it
        use_attention(view, IMPLEMENTATION, rows_attention)
        make_recomputable(view)

    def plain(view: Any) -> None:
        pass

    return Views(model, {"packed": packed, "compiled": compiled, "plain": plain})


@dataclass(frozen=True)
class Encoder:
    """A model's trunk, without its head, and how it is run.

    model          of transformers, the user's own
    views          of it
    compiled       whether its trunk, which computes the last hidden states, is run compiled
    first          position of a row's first token: RoBERTa and its relatives begin behind the index of their padding
    positions      number of positions; None: there is no limit
    prefix_counts  whether positions are embedded: those of a key-value prefix come first, and the text begins behind them
    separator      id of the token that ends the first of two texts, if the model tells them apart by type; else None
    types          number of token types
    checkpointing  whether layers are recomputed in backward
    """

    model: PreTrainedModel
    views: Views
    compiled: bool = False
    first: int = 0
    positions: int | None = None
    prefix_counts: bool = False
    separator: int | None = None
    types: int = 1
    checkpointing: bool = False

    def packed_states(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput, places: Sequence[Place]
    ) -> Tensor:
        """Last hidden states at some places, (len(places), d), from one pass over the packed rows."""
        tree = self._pack(rows, prompt)
        lengths = prompt.lengths if prompt.prefix is not None else None
        call = RowsCall(tree, prompt.prefix, lengths)
        starts = [0, *accumulate(tree.levels[0].lengths)]
        where = torch.tensor([starts[row] + i for row, i in places], dtype=torch.long, device=tree.ids.device)
        states = self._run(tree, rows, prompt, call, where)
        return states[0].index_select(0, where)  # (1, N, d) -> (U, d)

    @torch.no_grad()
    def key_values(self, ids: Sequence[int]) -> tuple[KeyValue, ...]:
        """Keys and values that the model computes for a text of these tokens, per layer (1, Hkv, n, D) float32."""
        rows = [EncodedRow(tuple(ids))]
        tree = self._pack(rows, PromptOutput())
        call = RowsCall(tree, None, None, keep=True)
        self._run(tree, rows, PromptOutput(), call)
        return tuple((k.float().cpu().clone(), v.float().cpu().clone()) for k, v in call.key_values or ())

    def states_by_length(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput, places: Sequence[Place]
    ) -> Tensor:
        """`packed_states` of a model whose attention cannot be reached: one pass for the rows of each length, without padding.

        Raises ValueError for a key-value prefix, which needs that attention.
        """
        if prompt.prefix is not None:
            raise ValueError(
                f"{type(self.model.base_model).__name__} takes no key-value prefix: its attention cannot be reached"
            )
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(len(row.context), []).append(number)
        found: dict[int, Tensor] = {}
        forward = self._trunk("plain")
        for length, group in groups.items():
            some = [rows[number] for number in group]
            tree = self._pack(some, prompt)
            embeds = embed_tree(self.model, tree, prompt).view(
                len(group), length, -1
            )  # (1, N, d) -> (S, T, d)
            kinds = {name: kind.view(len(group), length) for name, kind in self.kinds_of(some).items()}
            states = forward(inputs_embeds=embeds, **kinds).last_hidden_state
            found |= dict(zip(group, states, strict=True))
        if not places:
            return next(iter(found.values())).new_zeros(0, next(iter(found.values())).shape[-1])
        return torch.stack([found[row][i] for row, i in places])

    def _pack(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> PrefixTree:
        before = prefix_sizes(prompt) if self.prefix_counts else None
        starts = before or [0] * prompt.count
        if self.positions is not None:
            longest = max(starts[row.prompt] + len(row.context) for row in rows)
            if longest > self.positions:
                taken = "virtual tokens and widened masks included"
                if any(starts):
                    taken = "a key-value prefix, " + taken
                raise ValueError(
                    f"a row takes {longest} tokens, {taken}; the model has"
                    f" {self.positions} positions: set max_tokens, or shorten the template or the answers"
                )
        lengths = None
        if prompt.tokens is not None and prompt.lengths is not None and prompt.prefix is None:
            lengths = prompt.lengths.tolist()
        return build_tree(
            [replace(row, targets=(), read=()) for row in rows],
            [()] * prompt.count,
            virtual_tokens=0 if prompt.tokens is None else prompt.tokens.shape[1],
            lengths=lengths,
            offsets=starts,
            device=self.model.device,
        )

    def _run(
        self,
        tree: PrefixTree,
        rows: Sequence[EncodedRow],
        prompt: PromptOutput,
        call: RowsCall,
        read: Tensor | None = None,
    ) -> Tensor:
        """States of all packed tokens, (1, N, d).

        tree    the packed rows
        rows    that were packed
        prompt  that they carry
        call    the pass
        read    (U,) places whose states are read; None: all of them
        """
        forward = self._trunk("compiled" if self.compiled else "packed")
        with ExitStack() as stack:
            stack.enter_context(frozen_linears())
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(frozen_linears))
            # This would be compiled into the model, and is gone when a layer is recomputed.
            elif read is not None and not self.compiled:
                stack.enter_context(last_layer_only_at(read.unique(), tree.tokens))
            states: Tensor = forward(
                inputs_embeds=embed_tree(self.model, tree, prompt),
                position_ids=tree.positions[None] + self.first,
                prompt_rows=call,
                **self.kinds_of(rows),
            ).last_hidden_state
        if not call.was_reached:
            raise NotImplementedError("its attention cannot be reached")
        return states

    def _trunk(self, kind: str) -> Callable[..., Any]:
        view = self.views[kind]
        trunk: Callable[..., Any] = view.model.base_model
        return view.compiled(view.model.base_model, dynamic=True) if self.compiled else trunk

    def kinds_of(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """`token_type_ids` (1, N), as the tokenizer gives them to a pair of texts: the type grows behind each separator."""
        if self.separator is None:
            return {}
        kinds: list[int] = []
        for row in rows:
            before = [0, *accumulate(int(atom == self.separator) for atom in row.context)]
            kinds += [min(number, self.types - 1) for number in before[:-1]]
        return {"token_type_ids": torch.tensor([kinds], device=self.model.device)}
