"""Any encoder-decoder of transformers: T5, BART, Whisper and their relatives.

A row's context is the encoder's input, with virtual tokens where the template has them and the tokenizer's closing tokens
at its end. The decoder carries no virtual tokens, unlike in PEFT, whose T5 prompts have P unused rows for it. The encoder
of a speech model reads a spectrogram instead; there the context, prompt included, begins the decoder.

This is exact: a batch gives the logits and gradients of plain concatenation, one row and one target at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.encoder_decoder import generation
from softprompt.backbones.encoder_decoder.prefixes import EncoderCall
from softprompt.backbones.encoder_decoder.scoring import Seq2SeqModel, read_states, score, seq2seq_views
from softprompt.backbones.encoder_decoder.sound_states import SoundStates
from softprompt.backbones.encoder_decoder.spectrogram import spectrogram
from softprompt.backbones.engine import TRIAL_ERRORS, Atoms, disagreement, frozen_linears
from softprompt.backbones.vocabulary import table_of, text_spec
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput, TargetLogits


@dataclass(frozen=True)
class KeptPrompt:
    """Prompts that were run once, for later calls. Everything else depends on the whole row, so `heads` is empty."""

    prompt: PromptOutput
    heads: tuple[Atoms, ...] = ()


class EncoderDecoderBackbone:
    """An encoder and a decoder with their tokenizer.

    model      of transformers
    tokenizer  the model's own
    name       for people; by default the one that the model was loaded with
    packed     ignored: nothing is packed here. Other families take it
    """

    family = "encoder-decoder"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        if getattr(model.config, "num_experts", None):
            raise ValueError(
                f"{type(model).__name__} is a mixture of experts: transformers does not run its decoder on encoder states"
                " alone, as all rows and answers are run here; take an encoder-decoder without experts, such as T5"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self._runner = Seq2SeqModel(
            model=model,
            views=seq2seq_views(model),
            places=_places(model),
            stem=_stem(model),
            speech=self.speech,
        )

    @property
    def speech(self) -> bool:
        """Whether the encoder reads sound, and the context begins the decoder."""
        return self.model.main_input_name == "input_features"

    @property
    def sounds(self) -> SoundStates:
        """The cache of encoder states of sounds in a speech model, used while the encoder is frozen and has no prompt.

        It holds at most `backbone.sounds.limit` bytes; 0 switches it off.
        """
        return self._runner.sounds

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def embedding(self) -> nn.Module:
        """The module that embeds the context's token ids: the encoder's, or the decoder's in a speech model."""
        part = self.model.get_decoder() if self.speech else self.model.get_encoder()
        return part.get_input_embeddings()

    @property
    def table(self) -> Tensor:
        """The embedding table that virtual tokens stand beside, (V, d), unscaled."""
        return table_of(self.embedding)

    @torch.no_grad()
    def check(self) -> None:
        """Raise ValueError if a trial is not scored as the plain model scores it. Speech models are not tried."""
        if self.speech:
            return
        kind = type(self.model).__name__
        try:
            ids = [(7 * i + 3) % len(self.table) for i in range(9)]
            rows = [EncodedRow(tuple(ids[:3]), ((1,),)), EncodedRow(tuple(ids[3:8]), ((1,), (2, 1)))]
            found = self.score(rows, PromptOutput()).token_log_likelihoods()
            expected = torch.cat([self._alone(row, target) for row in rows for target in row.targets])
        except TRIAL_ERRORS as error:
            raise ValueError(
                f"{self.name} ({kind}) is laid out otherwise than T5, BART and their relatives"
                f" ({type(error).__name__}: {error}): take another model"
            ) from error
        if (difference := disagreement(found, expected, self.dtype, half=0.5)) is not None:
            raise ValueError(
                f"{self.name} ({kind}) scores a batch of rows by {difference:.2g} otherwise than each row alone: take another"
                " model"
            )

    def _alone(self, row: EncodedRow, target: Atoms) -> Tensor:
        """log p of each target token from one plain pass."""
        read = torch.tensor([row.context], device=self.device)
        stem = self._runner.stem
        written = torch.tensor([(*stem, *target[:-1])], device=self.device)
        logits: Tensor = self._runner.plain(
            input_ids=read, decoder_input_ids=written, use_cache=False
        ).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return logits.log_softmax(-1)[torch.arange(len(target)) + len(stem) - 1, list(target)]

    @cached_property
    def spec(self) -> BackboneSpec:
        config = self.model.config
        limits = ("max_target_positions",) if self.speech else ("max_position_embeddings",)
        shapes = self._key_value_shapes()
        return replace(
            text_spec(self.name, self.family, self.embedding, self.tokenizer),
            key_values=shapes,
            positions=next((n for name in limits if (n := getattr(config, name, None))), None),
            places=self._runner.places,
            key_values_of=self._key_values_of if shapes and not self.speech else None,
            closed=not self.speech,
            prefix_counts=self.speech,
            read_media=partial(spectrogram, config=config) if self.speech else None,
        )

    def with_model(self, model: PreTrainedModel) -> EncoderDecoderBackbone:
        """The same backbone around another copy of its model."""
        return EncoderDecoderBackbone(model, self.tokenizer, name=self.name)

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> EncoderDecoderBackbone:
        """The same model with gradient checkpointing, or compiled by torch.compile with dynamic shapes."""
        other = self.with_model(self.model)
        sounds = SoundStates(self.sounds.limit) if compiled else self.sounds
        other._runner = replace(
            self._runner, compiled=compiled, checkpointing=gradient_checkpointing, sounds=sounds
        )
        return other

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput | KeptPrompt) -> TargetLogits:
        """Logits of the positions that predict target tokens, each position once. Differentiable in the prompt.

        Raises ValueError for virtual tokens that a prompt does not have, and for a row without sound in a speech model.
        """
        return score(self._runner, rows, _plain(prompt))

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | KeptPrompt) -> Tensor:
        """Last hidden states at the rows' `read` positions, (n, d), in order: the encoder's, in a speech model the decoder's.

        They are differentiable in the prompt. Raises ValueError as `score` does.
        """
        if (known := known_states(rows, self.device)) is not None:
            return known
        return read_states(self._runner, rows, _plain(prompt))

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> KeptPrompt:
        """The prompts for later calls. Nothing more is computed: the states of an encoder depend on the whole row."""
        return KeptPrompt(prompt)

    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | KeptPrompt, **options: Any
    ) -> list[list[int]]:
        """New token ids for each row: greedy, sampled or by beams, with the options of transformers' `generate`.

        If `num_return_sequences` asks for several answers, those of a row stand together.
        Raises ValueError for options that are set here.
        """
        return generation.generate(self._runner, self.tokenizer, rows, _plain(prompt), options)

    def _key_value_shapes(self) -> tuple[tuple[int, int], ...]:
        """(H, D) at each place of a prefix, taken from the keys of one token; for a speech model, from its config.

        Empty if the encoder's attention cannot be reached (LongT5, LED): such a model takes no prefix.
        """
        places = self._runner.places
        if self.speech:
            return tuple(_heads(self.model.config, place) for place in places)
        try:
            found = self._key_values_of(torch.zeros(1, dtype=torch.long))
        except (TypeError, NotImplementedError, AttributeError, RuntimeError, ValueError, KeyError):
            return ()
        return tuple((keys.shape[1], keys.shape[3]) for keys, _ in found) if len(found) == len(places) else ()

    @torch.no_grad()
    def _key_values_of(self, ids: Tensor) -> tuple[KeyValue, ...]:
        """See BackboneSpec. The encoder reads the text, and the decoder begins with it."""
        encoder = self._runner.views["prefixed"].model.get_encoder()
        ids = ids.to(self.device)[None]
        call = EncoderCall(encoder, listen=True)
        with frozen_linears():
            states = encoder(input_ids=ids, prompt_prefix=call)
        call.check()
        output = self._runner.plain(encoder_outputs=states, decoder_input_ids=ids, use_cache=True)
        cache = output.past_key_values
        found = [call.heard[layer] for layer in sorted(call.heard)]
        for part in (cache.self_attention_cache, cache.cross_attention_cache):
            found += [(layer.keys, layer.values) for layer in part.layers]
        return tuple((keys.float().cpu().clone(), values.float().cpu().clone()) for keys, values in found)


def _plain(prompt: PromptOutput | KeptPrompt) -> PromptOutput:
    return prompt.prompt if isinstance(prompt, KeptPrompt) else prompt


def _places(model: PreTrainedModel) -> tuple[str, ...]:
    """The places of key-value prefixes: the layers of the encoder, those of the decoder, and these again for the
    cross-attention. Raises ValueError for a config that does not name the numbers of layers.
    """
    counts = []
    for side in ("encoder", "decoder"):
        # The names of BART and of T5. ProphetNet has other names; it gives NaN for padded rows.
        names = (f"{side}_layers", "num_layers" if side == "encoder" else "num_decoder_layers")
        count = next((n for name in names if (n := getattr(model.config, name, None))), None)
        if count is None:
            raise ValueError(
                f"{type(model).__name__}'s configuration has neither {' nor '.join(names)}: it is laid out like none of"
                " BART, T5 and Whisper, whose decoders can be prompted; take another model"
            )
        counts.append(count)
    encoder, decoder = counts
    return ("encoder",) * encoder + ("decoder",) * decoder + ("cross",) * decoder


def _heads(config: Any, place: str) -> tuple[int, int]:
    """(H, D) of the attention at a place in Whisper."""
    heads = config.encoder_attention_heads if place == "encoder" else config.decoder_attention_heads
    return heads, config.d_model // heads


def _stem(model: PreTrainedModel) -> Atoms:
    """What the decoder of a text model begins with: its start token, and the BOS that BART and its relatives must emit."""
    if model.main_input_name == "input_features":
        return ()
    start = model.generation_config.decoder_start_token_id
    if start is None:
        start = getattr(model.config, "decoder_start_token_id", None)
    if start is None:
        raise ValueError(
            f"{type(model).__name__} does not say what its decoder starts with: set model.config.decoder_start_token_id"
        )
    forced = model.generation_config.forced_bos_token_id
    return (start,) if forced is None else (start, forced)
