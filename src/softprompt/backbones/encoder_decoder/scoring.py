"""Running rows through an encoder-decoder.

The encoder reads each row once, with rows of similar length together. The decoder scores all targets of a row against the
same encoder states. Targets of a single token, as most label words are, share one step of the decoder; longer ones need
one decoder sequence for each distinct beginning.

A row's context is the encoder's input. The encoder of a speech model reads `media` instead, and the context begins the
decoder.

Letters: S sequences, T encoder tokens, M decoder tokens, U scored positions, P prefix positions; see outputs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from softprompt.backbones.encoder_decoder.prefixes import (
    EncoderCall,
    attend_behind_prefixes,
    standing_cache,
)
from softprompt.backbones.encoder_decoder.sequences import FULL, by_similar_length, embed_sequences
from softprompt.backbones.encoder_decoder.sound_states import SoundStates
from softprompt.backbones.engine import (
    Atoms,
    Views,
    checkpointed_layers,
    continuations,
    frozen_linears,
    make_recomputable,
    make_shifting,
)
from softprompt.backbones.unchanged import weights_mark
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput, TargetLogits


@dataclass(frozen=True)
class Seq2SeqModel:
    """A model and how it is run.

    model           of transformers, the user's own
    views           of it
    places          the place of each key-value prefix
    stem            what the decoder begins with in front of any target; () for a speech model, whose rows hold it
    speech          whether the encoder reads `media`
    compiled        whether the encoder and the whole model are run compiled
    checkpointing   whether layers are recomputed in backward
    sounds          cache of the encoder states of sounds
    """

    model: PreTrainedModel
    views: Views
    places: tuple[str, ...]
    stem: Atoms
    speech: bool
    compiled: bool = False
    checkpointing: bool = False
    sounds: SoundStates = field(default_factory=SoundStates)

    @property
    def plain(self) -> PreTrainedModel:
        """The model with its own attention, for the decoder and `generate`."""
        view: PreTrainedModel = self.views["plain"].model
        return view

    def _run(self, kind: str, part: Callable[[Any], Any], **inputs: Any) -> Any:
        """Run a part of a view, compiled if this runner says so."""
        view = self.views["compiled" if self.compiled and kind == "plain" else kind]
        forward = part(view.model)
        return (view.compiled(forward, dynamic=True) if self.compiled else forward)(**inputs)

    def prefix(self, prompt: PromptOutput, place: str, carried: Sequence[int]) -> tuple[KeyValue, ...]:
        """Keys and values (S, H, P, D) of each sequence's prompt, per layer at one kind of place; empty without a prefix.

        prompt   of the batch
        place    "encoder", "decoder" or "cross"
        carried  number of the prompt of each sequence; their prefixes must have one length. P may be 0 at a place

        Raises ValueError if the prompt has another number of layers than the model.
        """
        if prompt.prefix is None:
            return ()
        if len(prompt.prefix) != len(self.places):
            raise ValueError(
                f"the prompt has keys and values for {len(prompt.prefix)} layers, this model takes "
                f"{len(self.places)}: those of the encoder, the decoder and the cross-attention"
            )
        rows = torch.tensor(carried, device=self.model.device)
        taken = prefix_length(prompt, carried[0])

        def of_sequences(part: Tensor) -> Tensor:
            part = part[:, :, :taken].to(self.model.dtype)
            return part.index_select(0, rows)  # (G, H, P, D) -> (S, H, P, D)

        return tuple(
            (of_sequences(keys), of_sequences(values))
            for (keys, values), where in zip(prompt.prefix, self.places, strict=True)
            if where == place
        )

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> tuple[Tensor, Tensor]:
        """Encoder states (S, T, d) of rows whose prefixes have one length, and the mask (S, T)."""
        encoder = self.model.get_encoder()
        carried = [row.prompt for row in rows]
        prefix = self.prefix(prompt, "encoder", carried)
        inputs: dict[str, Any] = {}
        if self.speech:
            media = _media(rows)
            if self._keeps_sounds(prefix):
                states = self._states_of_sounds(media)
                return states, states.new_ones(states.shape[:2], dtype=torch.long)
            inputs["input_features"] = torch.stack(media).to(self.model.device, self.model.dtype)
            mask = None
        else:
            contexts = [row.context for row in rows]
            inputs["inputs_embeds"], mask = embed_sequences(
                encoder.get_input_embeddings(), contexts, carried, prompt
            )
            inputs["attention_mask"] = mask
        kind, call = "plain", None
        if prefix and prefix[0][0].shape[2]:
            kind = "prefixed"
            call = inputs["prompt_prefix"] = EncoderCall(self.views[kind].model.get_encoder(), prefix)
            if mask is not None:
                inputs["attention_mask"] = widened(mask, prefix)
        with self._layers():
            states = self._run(kind, _encoder_of, **inputs).last_hidden_state
        if call is not None:
            call.check()
        return states, states.new_ones(states.shape[:2], dtype=torch.long) if mask is None else mask

    def _keeps_sounds(self, prefix: tuple[KeyValue, ...]) -> bool:
        """Whether the encoder states of a sound are the same in every step, and may be cached."""
        if not self.sounds.limit or (prefix and prefix[0][0].shape[2]):
            return False
        return not any(p.requires_grad for p in self.model.get_encoder().parameters())

    def _states_of_sounds(self, media: Sequence[Tensor]) -> Tensor:
        model = self.model

        def encode(sounds: Tensor) -> Tensor:
            with frozen_linears():
                sounds = sounds.to(model.device, model.dtype)
                states: Tensor = self._run("plain", _encoder_of, input_features=sounds).last_hidden_state
            return states

        of = (self.compiled, weights_mark(model.get_encoder().parameters()))
        return self.sounds(media, encode, of, together=8 if model.device.type == "cuda" else 1)

    def logits(
        self,
        states: Tensor,
        mask: Tensor,
        sequences: Sequence[Atoms],
        carried: Sequence[int],
        prompt: PromptOutput,
    ) -> Tensor:
        """Next-token logits of decoder sequences, (S, M, V).

        states     (S, T, d) of the encoder
        mask       (S, T)
        sequences  the decoder's input
        carried    number of the prompt of each sequence
        prompt     of the batch
        """
        decoder = self.model.get_decoder()
        # In a text model the encoder has read the virtual tokens and offsets.
        own = prompt if self.speech else PromptOutput()
        embeds, _ = embed_sequences(decoder.get_input_embeddings(), sequences, carried, own)
        cache, mask = self._in_front(mask, carried, prompt)
        with self._layers():
            output = self._run(
                "plain",
                lambda view: view,
                **self.encoded(states, mask),
                decoder_inputs_embeds=embeds,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        logits: Tensor = output.logits
        return logits

    def decoder_states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """Last hidden states of a speech model's decoder over the rows' contexts, (S, M, d)."""
        decoder, carried = self.model.get_decoder(), [row.prompt for row in rows]
        states, mask = self.states(rows, prompt)
        contexts = [row.context for row in rows]
        embeds, _ = embed_sequences(decoder.get_input_embeddings(), contexts, carried, prompt)
        cache, _ = self._in_front(mask, carried, prompt)
        with self._layers():
            output = self.plain.get_decoder()(
                inputs_embeds=embeds,
                encoder_hidden_states=states,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        found: Tensor = output.last_hidden_state
        return found

    def _in_front(
        self, mask: Tensor, carried: Sequence[int], prompt: PromptOutput
    ) -> tuple[EncoderDecoderCache | None, Tensor]:
        """The decoder's prefixes as a cache, and the encoder's mask with room for those of the cross-attention."""
        if prompt.prefix is None:
            return None, mask
        inner, cross = (self.prefix(prompt, place, carried) for place in ("decoder", "cross"))
        return standing_cache(inner, cross), widened(mask, cross)

    @contextmanager
    def _layers(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(frozen_linears())
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(frozen_linears))
            yield

    def encoded(self, states: Tensor, mask: Tensor) -> dict[str, Any]:
        """The arguments that pass finished encoder states to the model."""
        outputs = {"encoder_outputs": BaseModelOutput(last_hidden_state=states)}
        return outputs if self.speech else {**outputs, "attention_mask": mask}


def seq2seq_views(model: PreTrainedModel) -> Views:
    """The views that a Seq2SeqModel runs: "plain" with the model's own attention, whose decoder's embeddings take part in
    `decoding`; "prefixed", whose encoder reads prefixes; and "compiled", which is "plain" for torch.compile."""

    def plain(view: Any) -> None:
        make_recomputable(view)
        make_shifting(view.get_decoder().get_input_embeddings())

    def prefixed(view: Any) -> None:
        make_recomputable(view)
        attend_behind_prefixes(view.get_encoder())

    return Views(model, {"plain": plain, "prefixed": prefixed, "compiled": make_recomputable})


def _encoder_of(view: Any) -> Any:
    return view.get_encoder()


def widened(mask: Tensor, prefix: tuple[KeyValue, ...]) -> Tensor:
    """A mask (S, T) with the positions of a prefix in front, (S, P + T)."""
    if not prefix:
        return mask
    return torch.cat([mask.new_ones(mask.shape[0], prefix[0][0].shape[2]), mask], dim=1)


def prefix_length(prompt: PromptOutput, which: int) -> int | None:
    """Number of positions of one prompt's prefix; None: all of them."""
    return None if prompt.prefix is None or prompt.lengths is None else int(prompt.lengths[which])


def batches_of(rows: Sequence[EncodedRow], prompt: PromptOutput, *, most: float) -> list[list[int]]:
    """Numbers of the rows that go through the encoder together, with prefixes of one length and inputs of similar length.

    rows    of the batch
    prompt  that they carry
    most    smallest ratio of the shortest input to the longest, see `by_similar_length`
    """
    groups: dict[int | None, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(prefix_length(prompt, row.prompt), []).append(i)
    return [
        [group[i] for i in bucket]
        for group in groups.values()
        for bucket in by_similar_length([len(rows[i].context) for i in group], most)
    ]


def score(runner: Seq2SeqModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
    """Logits of the positions that predict target tokens. Differentiable in the prompt."""
    first = [0, *accumulate(len(row.targets) for row in rows)]  # number of each row's first target
    parts: list[Tensor] = []
    entries: list[tuple[int, int, int]] = []  # target, scored position, token
    offset = 0
    asked = [i for i, row in enumerate(rows) if row.targets]
    for bucket in batches_of([rows[i] for i in asked], prompt, most=0.0 if runner.speech else FULL):
        numbers = [asked[i] for i in bucket]
        chosen = [rows[i] for i in numbers]
        layout = _lay_out(chosen, runner.stem)
        states, mask = runner.states(chosen, prompt)
        owners = torch.tensor(layout.owners, device=states.device)
        if len(owners) > len(chosen):
            states, mask = states.index_select(0, owners), mask.index_select(0, owners)
        carried = [chosen[b].prompt for b in layout.owners]
        logits = runner.logits(states, mask, layout.sequences, carried, prompt)  # (S, M, V)
        where = torch.tensor(layout.scored, device=logits.device)
        parts.append(logits[where[:, 0], where[:, 1]])  # (S, M, V) -> (U, V)
        entries += [(first[numbers[b]] + t, offset + place, token) for b, t, place, token in layout.read]
        offset += len(layout.scored)
    entries.sort(key=lambda entry: entry[0])
    target, position, token = torch.tensor(entries, device=runner.model.device).unbind(1)
    return TargetLogits(
        logits=torch.cat(parts),
        position=position,
        token=token,
        target=target,
        counts=tuple(len(row.targets) for row in rows),
    )


@dataclass(frozen=True)
class _Layout:
    """Decoder sequences of a bucket.

    owners  the row of each sequence
    scored  (sequence, place) of each scored position
    read    for each target token: row, its target, scored position, token
    """

    sequences: list[Atoms]
    owners: list[int]
    scored: list[tuple[int, int]]
    read: list[tuple[int, int, int, int]]


def _lay_out(rows: Sequence[EncodedRow], stem: Atoms) -> _Layout:
    sequences: list[Atoms] = []
    owners: list[int] = []
    scored: dict[tuple[int, int], int] = {}
    read: list[tuple[int, int, int, int]] = []
    for b, row in enumerate(rows):
        begin = stem or row.context
        runs, of_run = continuations(row.targets)
        start = len(sequences)
        sequences += [begin + run for run in runs or ((),)]
        owners += [b] * (len(sequences) - start)
        for t, (target, run) in enumerate(zip(row.targets, of_run, strict=True)):
            for j, token in enumerate(target):
                place = (start + (run if j else 0), len(begin) - 1 + j)
                read.append((b, t, scored.setdefault(place, len(scored)), token))
    return _Layout(sequences, owners, list(scored), read)


def read_states(runner: Seq2SeqModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
    """Last hidden states at the rows' `read` positions, (n, d): the encoder's, in a speech model the decoder's."""
    found: dict[int, Tensor] = {}
    for bucket in batches_of(rows, prompt, most=0.0 if runner.speech else FULL):
        chosen = [rows[i] for i in bucket]
        states = runner.decoder_states(chosen, prompt) if runner.speech else runner.states(chosen, prompt)[0]
        found |= {i: states[b, list(rows[i].read)] for b, i in enumerate(bucket)}
    return torch.cat([found[i] for i in range(len(rows))])


def _media(rows: Sequence[EncodedRow]) -> list[Tensor]:
    """Spectrograms of rows, (mel bins, frames) each."""
    media = [row.media for row in rows if row.media is not None]
    if len(media) < len(rows):
        raise ValueError(
            "a row has no sound: this backbone reads speech, name its column in the task's `media`"
        )
    return media
