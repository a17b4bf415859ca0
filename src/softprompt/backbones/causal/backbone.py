"""Any causal language model of transformers, with a prompt that is run once for all rows of a batch.

A packed batch is exact: it gives the logits and gradients of plain concatenation, one row at a time. A trial finds models
whose attention cannot be reached, or that mix tokens in another way (state-space layers, position biases). They take the
padded path of padded.py, which is right but shares nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.causal.generation import generate
from softprompt.backbones.causal.key_values import key_value_shapes, own_key_values, warn_of_windows
from softprompt.backbones.causal.padded import padded_logits, padded_states
from softprompt.backbones.causal.trial import settle_last_layer, try_packing
from softprompt.backbones.engine import (
    CompiledPrompt,
    PackedModel,
    causal_views,
    compile_prompt,
    pack,
    split_prompt,
)
from softprompt.backbones.vocabulary import table_of, text_spec
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


class CausalBackbone:
    """A decoder with its tokenizer.

    model      of transformers
    tokenizer  the model's own
    name       for people; by default the one that the model was loaded with
    packed     True: rows are packed and prompts shared; False: the padded path; None: a trial decides
    prefix_lm  whether prompt and input see each other both ways, as in UniLM (Dong et al. 2019, arXiv 1905.03197), while
               the answer sees only what stands before it. The family is "prefix-lm" then, and the prompt is run for each
               row
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        packed: bool | None = None,
        prefix_lm: bool = False,
    ) -> None:
        self.family = "prefix-lm" if prefix_lm else "causal-lm"
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self._can_pack = packed
        self._is_settled = False
        self._runner = PackedModel(model=model, views=causal_views(model), both_ways=prefix_lm)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def table(self) -> Tensor:
        """The input embedding table, (V, d)."""
        return table_of(self.model.get_input_embeddings())

    @property
    def packed(self) -> bool:
        """Whether rows are packed and prompts shared. A trial decides when this is first asked for."""
        if self._can_pack is None:
            found = try_packing(self._runner, self.name)
            self._runner = found or self._runner
            self._can_pack, self._is_settled = found is not None, True
        if self._can_pack and not self._is_settled:
            self._runner, self._is_settled = settle_last_layer(self._runner), True
        if self._runner.both_ways and not self._can_pack:
            raise ValueError(
                f"{self.name} cannot be a prefix LM: its attention cannot be reached; load it without prefix_lm"
            )
        return self._can_pack

    @cached_property
    def spec(self) -> BackboneSpec:
        config = self.model.config.get_text_config()
        shapes = key_value_shapes(self._runner.plain)
        return replace(
            text_spec(self.name, self.family, self.model.get_input_embeddings(), self.tokenizer),
            key_values=shapes,
            positions=getattr(config, "max_position_embeddings", None),
            key_values_of=(lambda ids: own_key_values(self._runner.plain, ids)) if shapes else None,
            attention=bool(shapes) or any("att" in name for name, _ in self.model.named_modules()),
        )

    def with_model(self, model: PreTrainedModel) -> CausalBackbone:
        """The same backbone around another copy of its model."""
        other = CausalBackbone(
            model, self.tokenizer, name=self.name, packed=self.packed, prefix_lm=self._runner.both_ways
        )
        other._runner = replace(other._runner, shortened=self._runner.shortened)
        other._is_settled = True
        return other

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> CausalBackbone:
        """The same model with gradient checkpointing, or compiled by torch.compile with dynamic shapes."""
        other = self.with_model(self.model)
        other._runner = replace(self._runner, compiled=compiled, checkpointing=gradient_checkpointing)
        return other

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> TargetLogits:
        """Logits of the positions that predict target tokens, each position once. Differentiable in the prompt.

        Raises ValueError for virtual tokens that a prompt does not have, and for rows that do not begin with a
        compiled prompt. Warns if sliding windows do not reach back to the beginning of a key-value prefix, or to any
        virtual token.
        """
        heads, plain = split_prompt(rows, prompt)
        if heads is None:
            warn_of_windows(self.model, rows, plain)
        if not self.packed:
            return padded_logits(self._runner.plain, rows, plain)
        tree = pack(rows, plain, self.device, compiled=heads, both_ways=self._runner.both_ways)
        logits = self._runner.run(tree, plain, tree.scored)
        return TargetLogits(
            logits=logits, position=tree.position, token=tree.token, target=tree.target, counts=tree.counts
        )

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> Tensor:
        """Last hidden states at the rows' `read` positions, (n, d), in order. Differentiable in the prompt.

        Raises ValueError as `score` does.
        """
        if (known := known_states(rows, self.device)) is not None:
            return known
        heads, plain = split_prompt(rows, prompt)
        if heads is None:
            warn_of_windows(self.model, rows, plain)
        if not self.packed:
            return padded_states(self._runner.plain, rows, plain)
        tree = pack(rows, plain, self.device, compiled=heads, both_ways=self._runner.both_ways)
        return self._runner.states(tree, plain)

    def next_token_logits(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> Tensor:
        """Logits after each row's context, (B, V)."""
        scored = self.score([replace(row, targets=((0,),)) for row in rows], prompt)
        return scored.logits[scored.position]

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledPrompt:
        """Run what all rows of each prompt share once, and cache its keys and values for every later call.

        Later rows must begin as these rows do.
        """
        warn_of_windows(self.model, rows, prompt)
        if not self.packed or self._runner.both_ways:  # a prompt's states depend on the row then
            return CompiledPrompt(((),) * prompt.count, prompt)
        return compile_prompt(self._runner, rows, prompt)

    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, **options: Any
    ) -> list[list[int]]:
        """New token ids for each row: greedy, sampled or by beams, with the options of transformers' `generate`.

        The rows are read in one packed pass, then `model.generate` decodes from the filled cache. If
        `num_return_sequences` asks for several answers, those of a row stand together.
        Raises ValueError for options that cannot be combined with a filled cache.
        """
        return generate(self._runner, self.tokenizer, rows, prompt, options, packed=self.packed)
