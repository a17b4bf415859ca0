"""Generation of an encoder-decoder behind a prompt: transformers' generate over encoder states that are computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import EncoderDecoderCache, GenerationMixin, PreTrainedTokenizerBase

from softprompt.backbones.encoder_decoder.prefixes import growing_cache
from softprompt.backbones.encoder_decoder.scoring import Seq2SeqModel, batches_of, widened
from softprompt.backbones.encoder_decoder.sequences import FULL, embed_sequences
from softprompt.backbones.engine import check_options, copies_of, counts, decoding, drawing, new_tokens
from softprompt.outputs import EncodedRow, PromptOutput

_OURS = frozenset(
    {
        "encoder_outputs",
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_inputs_embeds",
    }
)


@torch.no_grad()
def generate(
    runner: Seq2SeqModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    prompt: PromptOutput,
    options: dict[str, Any],
) -> list[list[int]]:
    """See EncoderDecoderBackbone.generate.

    runner     the model
    tokenizer  the model's own
    rows       that are answered
    prompt     that they carry
    options    of transformers' generate

    Raises ValueError for options that are set here.
    """
    check_options(options, also=_OURS)
    if options.get("cache_implementation") == "static" and (runner.speech or prompt.prefix is not None):
        raise ValueError("a static cache is refused in a speech model and behind a prefix: leave it out")
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    options = {"pad_token_id": eos if pad is None else pad, **options}
    each = options.get("num_return_sequences") or runner.model.generation_config.num_return_sequences or 1
    answers: dict[int, list[list[int]]] = {}
    for group in _groups(runner, rows, prompt):
        found = _generate(runner, [rows[i] for i in group], prompt, options)
        answers |= {i: found[n * each : (n + 1) * each] for n, i in enumerate(group)}
    return [sequence for i in range(len(rows)) for sequence in answers[i]]


def _groups(runner: Seq2SeqModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> list[list[int]]:
    """Numbers of rows that are generated together: their prefixes have one length and, in a speech model, so have the
    beginnings of the decoder, so that nothing is padded there.
    """
    return batches_of(rows, prompt, most=1.0 if runner.speech else 0.0)


def _generate(
    runner: Seq2SeqModel, rows: Sequence[EncodedRow], prompt: PromptOutput, options: dict[str, Any]
) -> list[list[int]]:
    model = runner.plain
    rows = [replace(row, targets=()) for row in rows]
    carried = [row.prompt for row in rows]
    states, mask = _all_states(runner, rows, prompt)
    inner, cross = (runner.prefix(prompt, place, carried) for place in ("decoder", "cross"))
    mask = widened(mask, cross)
    cache = growing_cache(inner, cross) if prompt.prefix is not None else None
    stems = [list(runner.stem)] * len(rows)
    first = None
    if runner.speech:
        cache, first = _filled(runner, rows, prompt, states, mask, cache)
        stems = [
            [max(row.context[-1], 0)] for row in rows
        ]  # it is fed again, and `decoding` replaces its embedding
    if cache is not None:
        _repeat(cache, copies_of(model, options))
    own = prompt if runner.speech else PromptOutput()
    with drawing(model, options), decoding(own, *counts(rows, model.device), first=first):
        output = GenerationMixin.generate(  # Whisper overrides it for sounds of any length, without prompts
            model,  # type: ignore[arg-type]
            decoder_input_ids=torch.tensor(stems, device=model.device),
            past_key_values=cache,
            **runner.encoded(states, mask),
            **options,
        )
    return new_tokens(output, len(stems[0]), options)


def _all_states(
    runner: Seq2SeqModel, rows: Sequence[EncodedRow], prompt: PromptOutput
) -> tuple[Tensor, Tensor]:
    """Encoder states of rows, computed in buckets of similar length, padded to the longest: (B, T, d) and (B, T)."""
    if runner.speech:
        return runner.states(rows, prompt)
    longest = max(len(row.context) for row in rows)
    states: list[Tensor] = [torch.empty(0)] * len(rows)
    masks: list[Tensor] = [torch.empty(0)] * len(rows)
    for bucket in batches_of(rows, prompt, most=FULL):
        found, mask = runner.states([rows[i] for i in bucket], prompt)
        missing = longest - found.shape[1]
        padded = torch.nn.functional.pad(found, (0, 0, 0, missing))
        mask = torch.nn.functional.pad(mask, (0, missing))
        for i, row_states, row_mask in zip(bucket, padded, mask, strict=True):
            states[i], masks[i] = row_states, row_mask
    return torch.stack(states), torch.stack(masks)


def _filled(
    runner: Seq2SeqModel,
    rows: Sequence[EncodedRow],
    prompt: PromptOutput,
    states: Tensor,
    mask: Tensor,
    cache: EncoderDecoderCache | None,
) -> tuple[EncoderDecoderCache | None, Tensor]:
    """A cache of the decoder's beginning without its last token, and the embedding of that token, (B, d)."""
    embeds, _ = embed_sequences(
        runner.model.get_decoder().get_input_embeddings(),
        [row.context for row in rows],  # of one length
        [row.prompt for row in rows],
        prompt,
    )
    if embeds.shape[1] > 1:
        cache = runner.plain(
            **runner.encoded(states, mask),
            decoder_inputs_embeds=embeds[:, :-1],
            past_key_values=cache,
            use_cache=True,
        ).past_key_values
    return cache, embeds[:, -1]


def _repeat(cache: EncoderDecoderCache, copies: int) -> None:
    """Repeat each row `copies` times, as generate() repeats its inputs for beams and samples."""
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        for layer in part.layers:
            if layer.is_initialized:  # type: ignore[union-attr]
                layer.batch_repeat_interleave(copies)  # type: ignore[union-attr]
