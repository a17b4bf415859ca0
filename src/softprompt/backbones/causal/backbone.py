"""Any causal language model of transformers, with a prompt that is run once for all rows of a batch.

A packed batch is exact: it gives the logits and gradients of plain concatenation, one row at a time. Trials find models
whose attention cannot be reached, or that mix tokens in another way (state-space layers, position biases). They take the
padded path of padded.py, which is right but shares nothing, and rows that would notice each other there run apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.causal.generation import GenerationError, Way, generate, try_generating
from softprompt.backbones.causal.key_values import key_value_shapes, own_key_values, warn_of_windows
from softprompt.backbones.causal.lengths import grouped, lengths_of, score_in_groups, states_in_groups
from softprompt.backbones.causal.padded import padded_logits, padded_states
from softprompt.backbones.causal.trial import Packing, can_pad, check_order, settle_last_layer, try_packing
from softprompt.backbones.engine import (
    CompiledPrompt,
    PackedModel,
    causal_views,
    compile_prompt,
    copies_of,
    pack,
    prefix_sizes,
    split_prompt,
)
from softprompt.backbones.vocabulary import table_of, text_spec
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits

log = logging.getLogger(__name__)


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
        self._packing = None if packed is None else Packing(packs=packed, prefixes=packed)
        self._can_pad: bool | None = None
        self._way: Way | None = None
        self._lengths = lengths_of(model)
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
        return self._tried.packs

    @property
    def _tried(self) -> Packing:
        if self._packing is None:
            self._packing = self._try()
            if not self._packing.packs:
                log.warning(
                    "%s: rows are padded and the prompt is run for each of them, because %s",
                    self.name,
                    self._packing.reason,
                )
            elif not self._packing.prefixes:
                log.info("%s: prompts are not compiled, because %s", self.name, self._packing.reason)
        if self._packing.packs and not self._is_settled:
            self._runner, self._is_settled = settle_last_layer(self._runner), True
        if self._runner.both_ways and not self._packing.packs:
            raise ValueError(
                f"{self.name} cannot be a prefix LM: its attention cannot be reached; load it without prefix_lm"
            )
        return self._packing

    def _try(self) -> Packing:
        packing, self._runner = try_packing(self._runner)
        self._is_settled = packing.packs
        return packing

    def check(self) -> None:
        """Raise ValueError if the model does not predict the next token, or was to be packed and cannot be."""
        check_order(self._runner, self.name)
        if self._packing is not None and self._packing.packs:
            self._packing = self._try()
            if not self._packing.packs:
                raise ValueError(
                    f"{self.name} cannot be packed: {self._packing.reason}. Load it without packed=True"
                )

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
        other._packing, other._can_pad, other._way = self._packing, self._can_pad, self._way
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
        if self._may_mix(plain):
            return self._score(rows, prompt, None)
        before = _before(rows, prompt)
        return score_in_groups(
            rows, before, self._kind(plain), lambda some, kind: self._score(some, prompt, kind)
        )

    def _score(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, kind: Hashable
    ) -> TargetLogits:
        """Logits of rows that may share a pass."""
        heads, plain = split_prompt(rows, _of_kind(prompt, kind))
        if not self._packs(plain):
            return padded_logits(self._runner.plain, rows, plain)
        tree = pack(rows, plain, self.device, compiled=heads, both_ways=self._runner.both_ways)
        logits = self._runner.run(tree, plain, tree.scored)
        return TargetLogits(
            logits=logits, position=tree.position, token=tree.token, target=tree.target, counts=tree.counts
        )

    def _packs(self, prompt: PromptOutput) -> bool:
        """Whether rows that carry this prompt are packed."""
        return self.packed and (prompt.prefix is None or self._tried.prefixes)

    def _pads(self) -> bool:
        """Whether rows can be padded on the right. A trial decides when this is first asked for."""
        if self._can_pad is None:
            self._can_pad = can_pad(self._runner)
        return self._can_pad

    def _may_mix(self, prompt: PromptOutput) -> bool:
        """Whether sequences of all lengths may share a pass."""
        return self._lengths.limit is None and (self._packs(prompt) or self._pads())

    def _kind(self, prompt: PromptOutput) -> Callable[[int], Hashable]:
        """Sequences whose lengths are of one kind may share a pass."""
        if self._packs(prompt) or self._pads():
            return self._lengths.kind
        return lambda length: (length, self._lengths.kind(length))

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> Tensor:
        """Last hidden states at the rows' `read` positions, (n, d), in order. Differentiable in the prompt.

        Raises ValueError as `score` does.
        """
        if (known := known_states(rows, self.device)) is not None:
            return known
        heads, plain = split_prompt(rows, prompt)
        if heads is None:
            warn_of_windows(self.model, rows, plain)
        if self._may_mix(plain):
            return self._states(rows, prompt, None)
        before = _before(rows, prompt)
        return states_in_groups(
            rows, before, self._kind(plain), lambda some, kind: self._states(some, prompt, kind)
        )

    def _states(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, kind: Hashable
    ) -> Tensor:
        """States of rows that may share a pass."""
        heads, plain = split_prompt(rows, _of_kind(prompt, kind))
        if not self._packs(plain):
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
        whole = CompiledPrompt(((),) * prompt.count, prompt)
        # A prompt's states depend on the row where it is read both ways.
        if not self.packed or self._runner.both_ways or not self._tried.prefixes:
            return whole
        if self._lengths.limit is None:
            return compile_prompt(self._runner, rows, prompt)
        if any(
            self._lengths.kind(start + len(row.context)) is not None
            for row, start in zip(rows, _before(rows, prompt), strict=True)
        ):
            return whole
        # Later rows may be long enough to change the positions of the head, whose keys are then others.
        return replace(compile_prompt(self._runner, rows, prompt), given=prompt)

    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, **options: Any
    ) -> list[list[int]]:
        """New token ids for each row: greedy, sampled or by beams, with the options of transformers' `generate`.

        The rows are read in one packed pass, then `model.generate` decodes from the filled cache. If
        `num_return_sequences` asks for several answers, those of a row stand together.
        Raises ValueError for options that cannot be combined with a filled cache, for a model whose own `generate` does
        not follow its logits, and for beams across the length at which long rope changes.
        """
        new = _most_new_tokens(self.model, options)
        way, limit = self._generates(), self._lengths.limit

        def kind(length: int) -> Hashable:
            return length if way == "by length" or (limit is not None and length + new > limit) else None

        lengths = [start + len(row.context) for row, start in zip(rows, _before(rows, prompt), strict=True)]
        groups = grouped(lengths, kind)
        answers: dict[int, list[list[int]]] = {}
        for members in groups.values():
            some = [rows[b] for b in members]
            far = limit is not None and lengths[members[0]] + new > limit
            found = self._continue(some, lengths[members[0]], _of_kind(prompt, far or None), new, options)
            copies = len(found) // len(members)
            answers |= {b: found[i * copies : (i + 1) * copies] for i, b in enumerate(members)}
        return [answer for b in range(len(rows)) for answer in answers[b]]

    def _generates(self) -> Way:
        """How rows are generated for. A trial decides when this is first asked for."""
        if self._way is None:
            rows = [EncodedRow((3, 4, 5)), EncodedRow((5, 4, 3, 4, 3))]
            # The trial's rows are read one way, whatever those of a prefix LM are.
            runner = replace(self._runner, both_ways=False)
            try:
                self._way = try_generating(runner, self.tokenizer, rows, self.packed)
            except GenerationError as reason:
                raise ValueError(
                    f"{self.name} cannot generate: {reason}. Score answers instead (a task with labels), or take another"
                    " model"
                ) from reason
        return self._way

    def _continue(
        self,
        rows: Sequence[EncodedRow],
        length: int,
        prompt: PromptOutput | CompiledPrompt,
        new: int,
        options: dict[str, Any],
    ) -> list[list[int]]:
        """New tokens of rows that may share a pass.

        rows     of the batch; of one length, if any of them grows out of the length of pretraining
        length   of the first
        prompt   that they carry
        new      how many tokens are generated at most
        options  of transformers' generate
        """
        plain = split_prompt(rows, prompt)[1]
        way: Way = self._generates()
        if way == "packed" and not self._packs(plain):
            way = "by length"
        switch = self._lengths.switch
        if switch is not None and length == switch + 1:  # Phi-3 throws a cache of `switch` tokens away here
            if plain.prefix is not None:
                raise ValueError(
                    f"{self.name} changes its positions beyond {switch} tokens, and cannot go on from there behind a"
                    " key-value prefix: take shorter rows, or fewer new tokens"
                )
            way = "by length"
        if switch is None or not length <= switch < length + new - 1:
            return generate(self._runner, self.tokenizer, rows, prompt, options, way=way)
        # From the first token beyond the switch on, all keys are others: the text so far is read again.
        if copies_of(self.model, options) > 1:
            raise ValueError(
                f"a row of {length} tokens and {new} new ones cross {switch} tokens, where the positions of {self.name}"
                " change: several sequences for a row cannot follow it; take one, or fewer new tokens"
            )
        first = switch - length + 1
        begun = generate(
            self._runner, self.tokenizer, rows, prompt, {**options, "max_new_tokens": first}, way=way
        )
        ends = _end_marks(self.model, options)
        on = [b for b, answer in enumerate(begun) if len(answer) == first and not ends & {*answer}]
        if on:
            longer = [replace(rows[b], context=rows[b].context + tuple(begun[b])) for b in on]
            rest = {**options, "max_new_tokens": new - first}
            for b, more in zip(on, self.generate(longer, prompt, **rest), strict=True):
                begun[b] = begun[b] + more
        return begun


def _before(rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> list[int]:
    """The number of positions in front of each row's context."""
    heads, plain = split_prompt(rows, prompt)
    taken = prefix_sizes(plain)
    if taken is None:
        return [0] * len(rows)
    return [taken[row.prompt] - (len(heads[row.prompt]) if heads else 0) for row in rows]


def _of_kind(prompt: PromptOutput | CompiledPrompt, kind: Hashable) -> PromptOutput | CompiledPrompt:
    """The prompt for rows of a kind of length: as it was given, where compiled keys have other positions."""
    if kind is not None and isinstance(prompt, CompiledPrompt) and prompt.given is not None:
        return prompt.given
    return prompt


def _most_new_tokens(model: PreTrainedModel, options: dict[str, Any]) -> int:
    found = options.get("max_new_tokens") or getattr(model.generation_config, "max_new_tokens", None)
    return int(found or 20)  # as transformers


def _end_marks(model: PreTrainedModel, options: dict[str, Any]) -> set[int]:
    marks = options.get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    if marks is None:
        return set()
    return {int(mark) for mark in (marks if isinstance(marks, list | tuple) else [marks])}
