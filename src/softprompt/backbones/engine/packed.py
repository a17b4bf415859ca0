"""Rows and their prompts as one packed pass through a causal model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from softprompt.backbones.engine.attention import TreeCall, attend_over_trees
from softprompt.backbones.engine.checkpointing import checkpointed_layers, make_recomputable
from softprompt.backbones.engine.last_layer import last_layer_only_at, make_shortened
from softprompt.backbones.engine.linear import frozen_linears
from softprompt.backbones.engine.norms import frozen_norms, make_fast
from softprompt.backbones.engine.offsets import make_shifting, shifted
from softprompt.backbones.engine.rotary import make_forgetful
from softprompt.backbones.engine.tree import Atoms, PrefixTree, build_tree, shared_heads
from softprompt.backbones.engine.view import Views
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput


@dataclass(frozen=True)
class CompiledPrompt:
    """Prompts whose heads have been turned into keys and values.

    heads   per prompt, the atoms that the keys and values replace: rows must begin with them
    prompt  `prefix` and `lengths` hold the heads; `tokens` and offsets serve what a row holds behind its head
    given   the prompt as it was, for rows that the keys and values do not serve; None: they serve all
    """

    heads: tuple[Atoms, ...]
    prompt: PromptOutput
    given: PromptOutput | None = None


def causal_views(model: PreTrainedModel) -> Views:
    """The views that a PackedModel runs: "packed", "compiled" (the same for torch.compile), and "plain" with the model's own
    attention, whose embeddings take part in `decoding`."""

    def packed(view: Any) -> None:
        attend_over_trees(view)
        make_forgetful(view)
        make_fast(view)
        make_shortened(view)
        make_recomputable(view)

    def compiled(view: Any) -> None:  # what is switched on by a call would be compiled into it
        attend_over_trees(view)
        make_forgetful(view)
        make_recomputable(view)

    def plain(view: Any) -> None:
        make_forgetful(view)
        make_shifting(view.get_input_embeddings())

    return Views(model, {"packed": packed, "compiled": compiled, "plain": plain})


@dataclass(frozen=True)
class PackedModel:
    """A model and how it is run.

    model          of transformers, the user's own
    views          of it
    compiled       whether it is run compiled
    checkpointing  whether layers are recomputed in backward
    both_ways      whether a row's context is read both ways (prefix LM)
    shortened      whether the end of the last layer is left out where nobody reads it
    """

    model: PreTrainedModel
    views: Views
    compiled: bool = False
    checkpointing: bool = False
    both_ways: bool = False
    shortened: bool = True

    @property
    def plain(self) -> PreTrainedModel:
        """The model with its own attention, for `generate` and unpacked rows."""
        view: PreTrainedModel = self.views["plain"].model
        return view

    def run(
        self,
        tree: PrefixTree,
        prompt: PromptOutput,
        keep: Tensor,
        cache: DynamicCache | None = None,
        call: TreeCall | None = None,
    ) -> Tensor:
        """Logits of some packed places, (len(keep), V), from one pass over the packed tokens.

        tree    the rows
        prompt  that they carry
        keep    packed places
        cache   is filled with the keys and values of all tokens
        call    the pass, for those who want to know what it saw
        """
        output = self._call(
            lambda view: view, tree, prompt, keep, call, past_key_values=cache, logits_to_keep=keep
        )
        logits: Tensor = output.logits[0]
        return logits

    def states(self, tree: PrefixTree, prompt: PromptOutput) -> Tensor:
        """Last hidden states of the places in `tree.read`, (len(tree.read), d), from one pass over the packed tokens."""
        # Rows may read the same place in a head that they share.
        output = self._call(trunk_of, tree, prompt, tree.read_once, past_key_values=None)
        states: Tensor = output.last_hidden_state
        return states[0].index_select(0, tree.read)  # (1, N, d) -> (n, d)

    def _call(
        self,
        part: Callable[[Any], Any],
        tree: PrefixTree,
        prompt: PromptOutput,
        keep: Tensor,
        call: TreeCall | None = None,
        *,
        past_key_values: DynamicCache | None,
        **others: Tensor,
    ) -> Any:
        view = self.views["compiled" if self.compiled else "packed"]
        forward = part(view.model)
        if self.compiled:
            forward = view.compiled(forward, dynamic=True)
        call = call or TreeCall(tree, prompt.prefix, prefix_lengths(prompt))
        with ExitStack() as stack:
            stack.enter_context(frozen_linears())
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(frozen_linears))
            # These would be compiled into the model, and are gone when a layer is recomputed.
            elif not self.compiled:
                if self.shortened:
                    stack.enter_context(last_layer_only_at(keep, tree.tokens))
                stack.enter_context(frozen_norms())
            output = forward(
                inputs_embeds=embed_tree(self.model, tree, prompt),
                position_ids=tree.positions[None],
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
                prompt_tree=call,
                **others,
            )
        if not call.windows_seen:
            raise NotImplementedError("its attention cannot be reached")
        return output

    @torch.no_grad()
    def key_values(self, tree: PrefixTree, prompt: PromptOutput) -> list[KeyValue]:
        """Keys and values of all packed tokens, per layer (Hkv, N, D)."""
        cache = DynamicCache()
        self.run(tree, prompt, tree.ends[:1], cache)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # type: ignore[union-attr, index]


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The model without its output layer. Some classes (Llama 4) take themselves for their base model."""
    trunk = model.base_model
    if trunk is model and isinstance(inner := getattr(model, "model", None), nn.Module):
        return inner
    assert isinstance(trunk, nn.Module)
    return trunk


def split_prompt(
    rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt
) -> tuple[Sequence[Atoms] | None, PromptOutput]:
    """The compiled heads of a prompt (None: it is not compiled), and the prompt itself.

    Raises ValueError if a row does not begin with the head that was compiled for its prompt.
    """
    if not isinstance(prompt, CompiledPrompt):
        return None, prompt
    for row in rows:
        head = prompt.heads[row.prompt]
        if row.context[: len(head)] != head or min(row.read, default=len(row.context) - 1) < len(head):
            raise ValueError("a row does not begin with the compiled prompt: compile it for these rows again")
    return prompt.heads, prompt.prompt


def pack(
    rows: Sequence[EncodedRow],
    prompt: PromptOutput,
    device: torch.device,
    *,
    compiled: Sequence[Atoms] | None = None,
    heads: Sequence[Atoms] | None = None,
    both_ways: bool = False,
) -> PrefixTree:
    """The tree of these rows.

    rows       of the batch
    prompt     that they carry
    device     of the tree's tensors
    compiled   per prompt, the atoms that its key-value prefix already replaces
    heads      per prompt, what its rows share; by default all that they have in common at the front
    both_ways  whether contexts are read both ways: then what stands in front depends on the row, and nothing is shared
    """
    before = prefix_sizes(prompt)
    text = None
    if compiled is not None:  # the rest of each row hangs from the prefix
        text = [sum(atom >= 0 for atom in head) for head in compiled]
        rows = [_behind(row, len(compiled[row.prompt])) for row in rows]
    lengths = None
    if prompt.tokens is not None and prompt.lengths is not None and prompt.prefix is None:
        lengths = prompt.lengths.tolist()
    if heads is None:
        heads = [()] * prompt.count if both_ways else shared_heads(rows, prompt.count)
    return build_tree(
        rows,
        heads,
        virtual_tokens=0 if prompt.tokens is None else prompt.tokens.shape[1],
        lengths=lengths,
        offsets=before,
        text_offsets=text,
        both_ways=both_ways,
        device=device,
    )


def _behind(row: EncodedRow, head: int) -> EncodedRow:
    """What is left of a row without its first `head` atoms."""
    return replace(row, context=row.context[head:], read=tuple(i - head for i in row.read))


def embed_tree(model: PreTrainedModel, tree: PrefixTree, prompt: PromptOutput) -> Tensor:
    """Input embeddings of the packed tokens, (1, N, d), in the model's dtype."""
    embeds = model.get_input_embeddings()(tree.ids)  # (N, d)
    embeds = shifted(embeds, tree.text, tree.prompts, prompt)
    if prompt.tokens is not None and len(tree.soft):
        virtual = prompt.tokens.flatten(0, 1).index_select(0, tree.slot)  # (G, P, d) -> (n, d)
        embeds = embeds.index_copy(0, tree.soft, virtual.to(embeds.dtype))
    return embeds[None]


def prefix_lengths(prompt: PromptOutput) -> Tensor | None:
    """Number of positions of each prompt's key-value prefix, (G,); None if there is no prefix."""
    if prompt.prefix is None:
        return None
    if prompt.lengths is not None:
        return prompt.lengths
    key = prompt.prefix[0][0]
    return torch.full((key.shape[0],), key.shape[2], device=key.device)


def prefix_sizes(prompt: PromptOutput) -> list[int] | None:
    """`prefix_lengths` as plain numbers, for which a device is asked only where prompts differ in length."""
    if prompt.prefix is None or prompt.lengths is not None:
        return None if prompt.prefix is None or prompt.lengths is None else prompt.lengths.tolist()
    key = prompt.prefix[0][0]  # (G, Hkv, P, D)
    return [key.shape[2]] * key.shape[0]


@torch.no_grad()
def compile_prompt(packed: PackedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledPrompt:
    """Run what all rows of each prompt share once. Its keys and values then stand in front of every later row.

    packed  the model
    rows    that later rows begin like
    prompt  to compile
    """
    heads = _heads_to_keep(rows, prompt.count)
    probes = [EncodedRow((*head, 0), prompt=g) for g, head in enumerate(heads) if head]
    if not probes:
        return CompiledPrompt(((),) * prompt.count, prompt)
    tree = pack(probes, prompt, packed.model.device, heads=[()] * prompt.count)
    before = prefix_sizes(prompt)
    taken = before or [0] * prompt.count
    width = max(n + len(head) for n, head in zip(taken, heads, strict=True))
    caches = packed.key_values(tree, prompt)
    olds: Sequence[Any] = prompt.prefix or [(None, None)] * len(caches)
    prefix = []
    for (keys, values), (old_keys, old_values) in zip(caches, olds, strict=True):
        prefix.append(
            (
                _with_heads(keys, old_keys, heads, taken, width),
                _with_heads(values, old_values, heads, taken, width),
            )
        )
    lengths = torch.tensor(
        [n + len(head) for n, head in zip(taken, heads, strict=True)], device=packed.model.device
    )
    return CompiledPrompt(tuple(heads), replace(prompt, prefix=tuple(prefix), lengths=lengths))


def _heads_to_keep(rows: Sequence[EncodedRow], prompts: int) -> list[Atoms]:
    """What to compute once for later calls: what all rows share, or the leading virtual tokens of a single row."""
    heads = shared_heads(rows, prompts)
    for row in rows:
        if not heads[row.prompt]:
            soft = next((i for i, atom in enumerate(row.context) if atom >= 0), 0)
            heads[row.prompt] = row.context[:soft]
    for row in rows:  # a head reads states, which keys and values do not hold
        heads[row.prompt] = heads[row.prompt][: min(row.read, default=len(row.context))]
    return heads


def _with_heads(
    packed: Tensor, old: Tensor | None, heads: Sequence[Atoms], taken: Sequence[int], width: int
) -> Tensor:
    """Keys (or values) of all heads behind those of the old prefix: (Hkv, N, D) -> (G, Hkv, width, D).

    packed  of all packed tokens
    old     of the prefix that stood there before; None: there was none
    heads   per prompt, its atoms
    taken   per prompt, positions of the old prefix
    width   positions of the longest new prefix
    """
    prefix = packed.new_zeros(len(heads), packed.shape[0], width, packed.shape[2])
    start = 0
    for g, head in enumerate(heads):
        if old is not None:
            prefix[g, :, : taken[g]] = old[g, :, : taken[g]]
        if head:
            prefix[g, :, taken[g] : taken[g] + len(head)] = packed[:, start : start + len(head)]
            start += len(head) + 1  # the token that each probe has of its own
    return prefix
