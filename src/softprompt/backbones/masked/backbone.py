"""Any encoder of transformers that reads text both ways: masked language models, and text encoders without a head.

A prompt's virtual tokens stand among a row's tokens and their states depend on that row, so they are run for each row.
Rows are packed without padding, and the output layer computes the masks alone. This is exact: a batch gives the logits
and gradients of plain concatenation, one row at a time. Models whose attention cannot be reached (DeBERTa, MPNet) run
the rows of each length together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.engine import TRIAL_ERRORS, CompiledPrompt, disagreement, frozen_linears
from softprompt.backbones.masked.cloze import read_cloze
from softprompt.backbones.masked.rows import Encoder, Place, masked_views, trunk_gives
from softprompt.backbones.vocabulary import alphabet_ids, table_of, text_spec
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput, TargetLogits

log = logging.getLogger(__name__)


class MaskedBackbone:
    """An encoder with its tokenizer. Its family is "masked-lm", or "text-encoder" if it has no head over words.

    model      of transformers
    tokenizer  the model's own
    name       for people; by default the one that the model was loaded with
    packed     True: rows are packed; False: rows of each length are run together; None: a trial decides
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        kind = type(model).__name__
        if kind.endswith("ForPreTraining") and model.get_output_embeddings() is not None:
            raise ValueError(
                f"{kind} has a second head beside the one over words: pass"
                f" {kind.replace('ForPreTraining', 'ForMaskedLM')} instead, or the checkpoint's folder"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or kind
        self.family = "text-encoder" if model.get_output_embeddings() is None else "masked-lm"
        self._can_pack = packed
        self._encoder = _encoder(model, tokenizer)

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
        """Whether rows are packed. A trial decides when this is first asked for."""
        if self._can_pack is None:
            self._can_pack = _can_pack(self._encoder, self.name)
        return self._can_pack

    @torch.no_grad()
    def check(self) -> None:
        """Raise ValueError if the model's words or states cannot be read here, or it was to be packed and cannot be."""
        kind = type(self.model).__name__
        try:
            row = EncodedRow(tuple((7 * i + 3) % len(self.table) for i in range(5)))
            embeds = self.model.get_input_embeddings()(torch.tensor([row.context], device=self.device))
            states = self._encoder.states_by_length([row], PromptOutput(), [(0, 1), (0, 3)])
            found = expected = states
            if self.family == "masked-lm":
                found = self._logits(states)
                kinds = self._encoder.kinds_of([row])
                expected = self._encoder.views["plain"].model(inputs_embeds=embeds, **kinds).logits[0, [1, 3]]
        except TRIAL_ERRORS as error:
            raise ValueError(
                f"{self.name} ({kind}) cannot be run as a {self.family} ({type(error).__name__}: {error}): take another"
                " model"
            ) from error
        if (difference := disagreement(found, expected, expected.dtype, half=0.1)) is not None:
            raise ValueError(
                f"{self.name} ({kind}) predicts words from more than the last hidden state of their place: its logits differ"
                f" by {difference:.2g}; take another model"
            )
        if self._can_pack and (reason := _why_not_packed(self._encoder)) is not None:
            raise ValueError(f"{self.name} cannot be packed: {reason}. Load it without packed=True")

    @cached_property
    def _output(self) -> type[Any]:
        """The class of what the trunk returns: heads may ask it for more than states (Longformer, LUKE)."""
        embeds = self.table[None, :1]
        try:
            with torch.no_grad():
                return type(self._encoder.views["plain"].model.base_model(inputs_embeds=embeds))
        except TRIAL_ERRORS:
            return BaseModelOutput

    @cached_property
    def spec(self) -> BackboneSpec:
        def key_values_of(ids: Tensor) -> tuple[KeyValue, ...]:
            return self._encoder.key_values(ids.tolist())

        shapes: tuple[tuple[int, int], ...] = ()
        if self.packed:
            # Taken from the keys of one token: configs name these numbers in many ways. The uncompiled trunk is enough.
            plain = replace(self._encoder, compiled=False)
            shapes = tuple((key.shape[1], key.shape[3]) for key, _ in plain.key_values([0]))
        return replace(
            text_spec(self.name, self.family, self.model.get_input_embeddings(), self.tokenizer),
            key_values=shapes,
            positions=self._encoder.positions,
            alphabet=alphabet_ids(self.tokenizer),
            key_values_of=key_values_of if self.packed else None,
            closed=True,
            state_width=self.model.config.hidden_size,
            mask=self.tokenizer.mask_token_id if self.family == "masked-lm" else None,
            prefix_counts=self._encoder.prefix_counts,
        )

    def with_model(self, model: PreTrainedModel) -> MaskedBackbone:
        """The same backbone around another copy of its model."""
        return MaskedBackbone(model, self.tokenizer, name=self.name, packed=self.packed)

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> MaskedBackbone:
        """The same model with gradient checkpointing, or compiled by torch.compile with dynamic shapes."""
        other = self.with_model(self.model)
        other._encoder = replace(self._encoder, compiled=compiled, checkpointing=gradient_checkpointing)
        return other

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> TargetLogits:
        """Logits of the masks that targets replace. Differentiable in the prompt.

        A row with one mask and a target of n tokens is read with n masks in its place, once for each n. Each token is
        predicted from the text and the prompt alone: a target's log-likelihood is the sum over its masks.
        Raises ValueError for rows whose masks and targets do not match, for virtual tokens that a prompt does not have,
        for rows longer than the model's positions, and for a text encoder, which predicts no words.
        """
        if self.family == "text-encoder":
            raise ValueError(
                f"{self.name} is a text encoder without a head over words: it cannot score label words. Use a task"
                " with a trained head, or a checkpoint of the whole masked language model"
            )
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise ValueError(f"the tokenizer of {self.name} has no mask token: it is not the model's own")
        cloze = read_cloze(rows, mask, self.tokenizer.mask_token)
        logits = self._logits(self._states(cloze.rows, prompt, cloze.places))

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=logits.device)

        return TargetLogits(
            logits=logits,
            position=tensor(cloze.position),
            token=tensor(cloze.token),
            target=tensor(cloze.target),
            counts=cloze.counts,
        )

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt) -> Tensor:
        """Last hidden states at the rows' `read` positions, (n, d), in order. Differentiable in the prompt.

        Raises ValueError for virtual tokens that a prompt does not have, and for rows too long for the model.
        """
        if (known := known_states(rows, self.device)) is not None:
            return known
        return self._states(rows, prompt, [(b, i) for b, row in enumerate(rows) for i in row.read])

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledPrompt:
        """The prompt as it is: in a model that reads both ways, rows share nothing but key-value prefixes."""
        return CompiledPrompt(((),) * prompt.count, prompt)

    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, **options: Any
    ) -> list[list[int]]:
        """Raises ValueError: an encoder generates no text."""
        raise ValueError(
            f"{self.name} ({self.family}) reads a text from both sides and cannot continue it: use a task with"
            " label words and a {mask}, or one with a trained head; for free text take a causal language model"
        )

    def _states(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledPrompt, places: Sequence[Place]
    ) -> Tensor:
        plain = prompt.prompt if isinstance(prompt, CompiledPrompt) else prompt
        if self.packed:
            return self._encoder.packed_states(rows, plain, places)
        return self._encoder.states_by_length(rows, plain, places)

    def _logits(self, states: Tensor) -> Tensor:
        """The model's own head over these states alone, (U, d) -> (U, V)."""
        given = self._output(last_hidden_state=states[None])
        model = self._encoder.views["packed"].model
        with trunk_gives(given), frozen_linears():
            logits: Tensor = model(inputs_embeds=states[None]).logits[0]
        return logits


def _encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    config = model.config
    first, embedded = 0, False
    for name, module in model.base_model.named_modules():
        if not name.endswith("position_embeddings") or not isinstance(module, nn.Embedding):
            continue
        embedded = True
        if module.padding_idx is not None:  # RoBERTa, which follows fairseq
            first = module.padding_idx + 1
    limit = getattr(config, "max_position_embeddings", None)
    types = min(getattr(config, "type_vocab_size", 1) or 1, _types_of_a_pair(tokenizer))
    return Encoder(
        model=model,
        views=masked_views(model),
        first=first,
        positions=None if limit is None else limit - first,
        # As in transformers for BERT and RoBERTa behind a cache, and therefore in P-tuning v2 and PEFT. A rotary model
        # (ModernBERT) takes no cache there, so nothing says where its text would begin: here at 0, which costs nothing.
        prefix_counts=embedded,
        separator=tokenizer.sep_token_id if types > 1 else None,
        types=types,
    )


def _types_of_a_pair(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many token types the tokenizer gives to a pair of texts: two in BERT, one in RoBERTa."""
    return 1 + max(tokenizer("a", "a", return_token_type_ids=True)["token_type_ids"])


def _can_pack(encoder: Encoder, name: str) -> bool:
    """Whether packed states equal those of each row alone, in a trial."""
    if (reason := _why_not_packed(encoder)) is not None:
        log.warning(
            "%s: rows of each length are run apart, without key-value prefixes, because %s", name, reason
        )
    return reason is None


@torch.no_grad()
def _why_not_packed(encoder: Encoder) -> str | None:
    """Why the trial of packed rows fails; None: it does not."""
    table = table_of(encoder.model.get_input_embeddings())
    ids = [(7 * i + 3) % len(table) for i in range(9)]
    rows = [EncodedRow((ids[0], -1, *ids[1:4])), EncodedRow((ids[0], -1, *ids[4:]))]
    tokens = table[ids[1]][None, None]
    # Some places are left out, so that the shortened last layer is tried as well.
    places = [(b, i) for b, row in enumerate(rows) for i in range(1, len(row.context))]
    expected = encoder.states_by_length(rows, PromptOutput(tokens=tokens), places)
    try:
        found = encoder.packed_states(rows, PromptOutput(tokens=tokens), places)
    except TRIAL_ERRORS as error:
        return f"{type(error).__name__}: {error}"
    difference = disagreement(found, expected, expected.dtype, half=0.1)
    return None if difference is None else f"packed rows differ by {difference:.2g}"
