"""Any causal language model of transformers, with a prompt that is run once for all rows of a batch.

Exact: a packed batch gives the logits and gradients of plain concatenation, one row at a time. Models whose attention
cannot be reached, or that mix tokens otherwise (state-space layers, position biases), are found out by a trial when
they are loaded and take the padded path of _padded.py: right, but not shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones._attention import TreeCall, tree_implementation
from softprompt.backbones._checkpointing import checkpointed_layers
from softprompt.backbones._padded import padded_logits
from softprompt.backbones._tree import Atoms, PrefixTree, build_tree, shared_heads
from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput, TargetLogits


@dataclass(frozen=True)
class CompiledPrompt:
    """Prompts whose heads are already keys and values.

    heads   per prompt, the atoms that the keys and values stand for: rows must begin with them
    prompt  `prefix` and `lengths` for the heads; `tokens`, `offset` for whatever a row holds beyond its head
    """

    heads: tuple[Atoms, ...]
    prompt: PromptOutput


class CausalBackbone:
    """A decoder with its tokenizer.

    packed                  rows are packed and prompts shared; False: the padded path
    gradient_checkpointing  layers are recomputed in backward: less memory, about a third more time
    """

    family = "causal-lm"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self.gradient_checkpointing = False
        self._packed = packed
        self._forward: Any = model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def table(self) -> Tensor:
        """The input embedding table, (V, d)."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def packed(self) -> bool:
        if self._packed is None:
            from softprompt.backbones._trial import can_pack

            self._packed = can_pack(self)
        return self._packed

    @cached_property
    def spec(self) -> BackboneSpec:
        config = self.model.config.get_text_config()
        embedding = self.model.get_input_embeddings()

        def embed(ids: Tensor) -> Tensor:
            with torch.no_grad():
                return embedding(ids.to(self.table.device)).float().cpu().clone()  # type: ignore[no-any-return]

        def tokenize(text: str) -> list[int]:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

        heads = getattr(config, "num_attention_heads", None)  # none in a state-space model
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        head_dim = getattr(config, "head_dim", None) or (heads and config.hidden_size // heads)
        vocabulary, width = self.table.shape
        sample = torch.arange(0, vocabulary, max(1, vocabulary // 4096))
        return BackboneSpec(
            name=self.name,
            family=self.family,
            width=width,
            vocabulary=vocabulary,
            key_values=((kv_heads, head_dim),) * config.num_hidden_layers if heads else (),
            positions=getattr(config, "max_position_embeddings", None),
            embedding_std=embed(sample).std().item(),
            embed=embed,
            tokenize=tokenize,
            special_ids=frozenset(self.tokenizer.all_special_ids),
        )

    def with_model(self, model: PreTrainedModel) -> CausalBackbone:
        """The same backbone around another copy of its model."""
        return CausalBackbone(model, self.tokenizer, name=self.name, packed=self.packed)

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> CausalBackbone:
        """The same model, run to save memory or through torch.compile (with dynamic shapes)."""
        other = self.with_model(self.model)
        other.gradient_checkpointing = gradient_checkpointing
        if compiled:
            other._forward = torch.compile(self.model, dynamic=True)
        return other

    # --- training and scoring ---------------------------------------------------------------------------------

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> TargetLogits:
        """Logits of the positions that predict target tokens, each once. Differentiable in the prompt."""
        heads, prompt = self._heads(rows, prompt)
        if not self.packed and prompt.prefix is None:
            return padded_logits(self, rows, prompt)
        tree = self._tree(rows, heads, prompt)
        logits = self._run(tree, prompt, tree.scored)[0]
        return TargetLogits(logits, tree.position, tree.token, tree.target, tree.counts)

    def next_token_logits(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> Tensor:
        """Logits after each row's context, (B, V)."""
        rows = [replace(row, targets=((0,),)) for row in rows]
        scored = self.score(rows, prompt)
        return scored.logits[scored.position]

    def _heads(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt
    ) -> tuple[Sequence[Atoms] | None, PromptOutput]:
        """The heads that are compiled already (None: none are), and the plain prompt."""
        if isinstance(prompt, CompiledPrompt):
            for row in rows:
                head = prompt.heads[row.prompt]
                if row.context[: len(head)] != head or len(row.context) == len(head):
                    raise ValueError(
                        "a row does not begin with the compiled prompt: compile it for these rows again"
                    )
            return prompt.heads, prompt.prompt
        return None, prompt

    def _tree(
        self, rows: Sequence[EncodedRow], heads: Sequence[Atoms] | None, prompt: PromptOutput
    ) -> PrefixTree:
        offsets = text = None
        if prompt.prefix is not None:
            width = prompt.prefix[0][0].shape[2]
            offsets = [width] * prompt.count if prompt.lengths is None else prompt.lengths.tolist()
        if heads is not None:  # these stand in the prefix: what is left of each row hangs under it
            text = [sum(atom >= 0 for atom in head) for head in heads]
            rows = [replace(row, context=row.context[len(heads[row.prompt]) :]) for row in rows]
        lengths = None
        if prompt.tokens is not None and prompt.lengths is not None and heads is None:
            lengths = prompt.lengths.tolist()
        return build_tree(
            rows,
            shared_heads(rows, prompt.count),
            virtual_tokens=0 if prompt.tokens is None else prompt.tokens.shape[1],
            lengths=lengths,
            offsets=offsets,
            text_offsets=text,
            device=self.device,
        )

    def _embed(self, tree: PrefixTree, prompt: PromptOutput) -> Tensor:
        """Input embeddings of the packed tokens, (1, N, d), in the backbone's dtype."""
        embeds = self.model.get_input_embeddings()(tree.ids)  # (N, d)
        if prompt.offset is not None:
            embeds = embeds + _text_offsets(prompt.offset, tree.prompts, tree.text).to(embeds.dtype)
        if prompt.tokens is not None and len(tree.soft):
            virtual = prompt.tokens.flatten(0, 1).index_select(0, tree.slot)  # (G, P, d) -> (n, d)
            embeds = embeds.index_copy(0, tree.soft, virtual.to(embeds.dtype))
        return embeds[None]

    def _run(
        self, tree: PrefixTree, prompt: PromptOutput, keep: Tensor, cache: DynamicCache | None = None
    ) -> Tensor:
        """One pass over the packed tokens; logits of the places in `keep`, (1, len(keep), V)."""
        call = TreeCall(tree, prompt.prefix, _prefix_lengths(prompt))
        with ExitStack() as stack:
            stack.enter_context(tree_implementation(self.model))
            if self.gradient_checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(self.model))
            output = self._forward(
                inputs_embeds=self._embed(tree, prompt),
                position_ids=tree.positions[None],
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=keep,
                prompt_tree=call,
            )
        return output.logits

    # --- use --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledPrompt:
        """Run what all rows of each prompt share once, and keep its keys and values for every later call.

        The heads are those of `rows`: later rows must begin with them.
        """
        if not self.packed:
            return CompiledPrompt(((),) * prompt.count, prompt)
        heads = compiled_heads(rows, prompt.count)
        probes = [EncodedRow((*head, 0), prompt=g) for g, head in enumerate(heads) if head]
        if not probes:
            return CompiledPrompt(((),) * prompt.count, prompt)
        plain = [() for _ in heads]
        tree = self._tree_of(probes, plain, prompt)
        caches = self._key_values(tree, prompt)
        before = _prefix_lengths(prompt)
        width = max(map(len, heads)) + (0 if prompt.prefix is None else prompt.prefix[0][0].shape[2])
        lengths = [len(head) + (0 if before is None else int(before[g])) for g, head in enumerate(heads)]
        prefix = tuple(
            tuple(
                self._head_cache(part, old, heads, before, width)
                for part, old in zip(pair, olds, strict=True)
            )
            for pair, olds in zip(caches, prompt.prefix or [(None, None)] * len(caches), strict=True)
        )
        kept = replace(prompt, prefix=prefix, lengths=torch.tensor(lengths, device=self.device))  # type: ignore[arg-type]
        return CompiledPrompt(tuple(heads), kept)

    def _tree_of(
        self, rows: Sequence[EncodedRow], heads: Sequence[Atoms], prompt: PromptOutput
    ) -> PrefixTree:
        before = _prefix_lengths(prompt)
        return build_tree(
            rows,
            heads,
            virtual_tokens=0 if prompt.tokens is None else prompt.tokens.shape[1],
            offsets=None if before is None else before.tolist(),
            device=self.device,
        )

    def _head_cache(
        self, packed: Tensor, old: Tensor | None, heads: Sequence[Atoms], before: Tensor | None, width: int
    ) -> Tensor:
        """Keys (or values) of all heads as a padded prefix: (Hkv, N, D) -> (G, Hkv, width, D)."""
        prefix = packed.new_zeros(len(heads), packed.shape[0], width, packed.shape[2])
        start = 0
        for g, head in enumerate(heads):
            taken = 0
            if old is not None and before is not None:
                taken = int(before[g])
                prefix[g, :, :taken] = old[g, :, :taken]
            if head:
                prefix[g, :, taken : taken + len(head)] = packed[:, start : start + len(head)]
                start += len(head) + 1  # the probe's own token
        return prefix

    @torch.no_grad()
    def _key_values(self, tree: PrefixTree, prompt: PromptOutput) -> list[KeyValue]:
        """Keys and values of all packed tokens, per layer (Hkv, N, D)."""
        cache = DynamicCache()
        self._run(tree, prompt, tree.ends[:1], cache)
        return [(layer.keys[0], layer.values[0]) for layer in cache.layers]  # type: ignore[union-attr, index]

    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, **options: Any
    ) -> list[list[int]]:
        """New token ids for each row: greedy, sampled or by beams, with the options of transformers' `generate`.

        The rows are read in one packed pass, then decoding goes on in `model.generate` with the filled cache.
        Several `num_return_sequences` come one after the other, row by row.
        """
        from softprompt.backbones._generation import generate

        return generate(self, rows, prompt, options)


def _text_offsets(offset: Tensor, prompts: Tensor, text: Tensor) -> Tensor:
    """DePT's offset for each packed token, zero beyond its length: (G, s, d) -> (N, d)."""
    beyond = text >= offset.shape[1]
    found = offset[prompts, text.clamp(max=offset.shape[1] - 1)]
    return found.masked_fill(beyond[:, None], 0.0)


def _prefix_lengths(prompt: PromptOutput) -> Tensor | None:
    """Positions that each prompt's key-value prefix takes, (G,); None without a prefix."""
    if prompt.prefix is None:
        return None
    if prompt.lengths is not None:
        return prompt.lengths
    key = prompt.prefix[0][0]
    return torch.full((key.shape[0],), key.shape[2], device=key.device)


def compiled_heads(rows: Sequence[EncodedRow], prompts: int) -> list[Atoms]:
    """What is worth keeping for later calls: what all rows share, or a single row's leading virtual tokens."""
    heads = shared_heads(rows, prompts)
    for row in rows:
        if not heads[row.prompt]:
            soft = next((i for i, atom in enumerate(row.context) if atom >= 0), 0)
            heads[row.prompt] = row.context[:soft]
    return heads
