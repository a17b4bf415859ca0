"""Generation behind a compiled prompt.

The rows are read in one packed pass. Their keys and values are then laid out as transformers' generate expects them:
padding on the far left, prompt and text without a gap, all but the last token in the cache. So a row's tokens keep the
distances and positions that they have alone, whatever else is in the batch, and sliding windows reach the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from softprompt.backbones.causal.key_values import prefix_cache
from softprompt.backbones.causal.padded import embed_atoms, padded_logits
from softprompt.backbones.engine import (
    TRIAL_ERRORS,
    Atoms,
    CompiledPrompt,
    PackedModel,
    PrefixTree,
    check_options,
    copies_of,
    counts,
    decoding,
    drawing,
    embed_tree,
    new_tokens,
    pack,
    split_prompt,
    words_disagree,
)
from softprompt.outputs import EncodedRow, PromptOutput

Way = Literal["packed", "padded", "by length"]
"""How rows are generated for: read in one packed pass; padded on the left; or those of each length together."""


@torch.no_grad()
def try_generating(
    runner: PackedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[EncodedRow], packed: bool
) -> Way:
    """The first way that continues rows of different lengths as the plain model's logits say.

    runner     the model
    tokenizer  the model's own
    rows       of different lengths, without virtual tokens
    packed     whether rows can be packed

    Raises GenerationError, with the reason, if there is none.
    """
    options: dict[str, Any] = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
    options |= {"num_beams": 1, "num_return_sequences": 1}
    options |= {"return_dict_in_generate": True, "output_logits": True}
    reason = "transformers' generate does not continue a text as the model's own logits say"
    ways: tuple[Way, ...] = ("packed", "padded", "by length") if packed else ("padded", "by length")
    for way in ways:
        groups = [[row] for row in rows] if way == "by length" else [list(rows)]
        # Of a 16-bit model the last way is not refused for rounding, however deep the model is.
        half = 0.3 if way == ways[-1] else 0.06
        try:
            if all(_continues(runner, tokenizer, group, options, way, half) for group in groups):
                return way
        except TRIAL_ERRORS as error:
            if way == ways[-1]:  # each row by itself: what fails there is no matter of batches
                reason = _said(error)
    raise GenerationError(reason)


class GenerationError(Exception):
    """Transformers' generate does not go on from embeddings of this model."""


def _said(error: Exception) -> str:
    if "inputs_embeds" in str(error):
        return "transformers' generate takes token ids alone for this class, and a prompt is no token"
    return f"transformers' generate fails on its embeddings ({type(error).__name__}: {error})"


def _continues(
    runner: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    options: dict[str, Any],
    way: Way,
    half: float,
) -> bool:
    """Whether the logits of each new token are those of a plain pass over all that stands before it."""
    asked = {"pad_token_id": tokenizer.pad_token_id or 0, **options, "use_cache": True}
    output, _ = _output(runner, rows, PromptOutput(), asked, way)
    found = torch.stack(output.logits, dim=1)  # (B, 2, V)
    new = output.sequences[:, -found.shape[1] :].tolist()
    dtype = runner.model.dtype
    dtype = torch.float32 if dtype == torch.float64 else dtype  # logits come out of generate() in float32
    for b, row in enumerate(rows):
        scored = padded_logits(runner.plain, [replace(row, targets=(tuple(new[b]),))], PromptOutput())
        if words_disagree(found[b], scored.logits[scored.position], dtype, half=half) is not None:
            return False
    return True


@torch.no_grad()
def generate(
    runner: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    prompt: PromptOutput | CompiledPrompt,
    options: dict[str, Any],
    *,
    way: Way,
) -> list[list[int]]:
    """See CausalBackbone.generate.

    runner     the model
    tokenizer  the model's own
    rows       whose contexts are continued
    prompt     that they carry
    options    of transformers' generate
    way        how; "by length" expects rows of one length

    Raises ValueError for options that cannot be combined with a filled cache.
    """
    check_options(options)
    model = runner.plain
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    # The rows are read into a cache, so generate() must use it; the tokens are the same as without one.
    options = {"pad_token_id": eos if pad is None else pad, **options, "use_cache": True}
    _, plain = split_prompt(rows, prompt)
    if way != "packed" and plain.prefix is not None:
        return [new for row in rows for new in _generate_behind_prefix(model, row, plain, options)]
    output, start = _output(runner, rows, prompt, options, way)
    return new_tokens(output, start, options)


def _output(
    runner: PackedModel,
    rows: Sequence[EncodedRow],
    prompt: PromptOutput | CompiledPrompt,
    options: dict[str, Any],
    way: Way,
) -> tuple[Any, int]:
    """What transformers' `generate` returns, and the place of the first new token. See `generate`."""
    model = runner.plain
    heads, plain = split_prompt(rows, prompt)
    rows = [replace(row, targets=()) for row in rows]
    if way != "packed":
        return _generate_padded(model, rows, plain, options), 0
    options = dict(options)
    tree = pack(rows, plain, model.device, compiled=heads, both_ways=runner.both_ways)
    where, mask = _left_padded_places(rows, heads, plain, tree)
    held = where[:, :-1].repeat_interleave(
        copies_of(model, options), 0
    )  # generate() feeds the last token itself
    cache = _empty_cache(model, mask.shape[1], options)
    options.pop("cache_implementation", None)
    for layer, new in enumerate(runner.key_values(tree, plain)):
        prefix: Any = (None, None) if plain.prefix is None else plain.prefix[layer]
        keys, values = (_gather(part, old, held) for part, old in zip(new, prefix, strict=True))
        cache.update(keys, values, layer)
    ids = _visible_ids(rows, mask)
    last = embed_tree(model, tree, plain)[0, tree.ends]  # (N, d) -> (B, d)
    with drawing(model, options), decoding(plain, *counts(rows, model.device), first=last):
        output = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **options)  # type: ignore[operator]
    return output, mask.shape[1]


def _empty_cache(model: PreTrainedModel, context: int, options: dict[str, Any]) -> Cache:
    """A cache of the kind that the options name. A static one has room for the context and the new tokens."""
    if options.get("cache_implementation") != "static":
        return DynamicCache(config=model.config)
    new = options.get("max_new_tokens") or getattr(model.generation_config, "max_new_tokens", None)
    if new is None:
        raise ValueError("the size of a static cache is fixed from the beginning: give max_new_tokens")
    return StaticCache(config=model.config, max_cache_len=context + new)


def _left_padded_places(
    rows: Sequence[EncodedRow], heads: Sequence[Atoms] | None, prompt: PromptOutput, tree: PrefixTree
) -> tuple[Tensor, Tensor]:
    """The place of each row's tokens among [key-value prefixes; packed tokens], padded on the left, and the mask.

    Both (B, longest row, prefix included). Place 0 stands for padding.
    """
    width = 0 if prompt.prefix is None else prompt.prefix[0][0].shape[2]
    before = width * (prompt.count if width else 0)
    starts = [torch.tensor(level.lengths).cumsum(0) - torch.tensor(level.lengths) for level in tree.levels]
    base = 0
    for level, start in zip(tree.levels, starts, strict=True):
        start += base + before
        base += level.tokens
    sequences = []
    for b, row in enumerate(rows):
        parts = []
        if width:
            taken = width if prompt.lengths is None else int(prompt.lengths[row.prompt])
            parts.append(torch.arange(taken) + row.prompt * width)
        if len(tree.levels) > 1:
            parts.append(torch.arange(tree.levels[0].lengths[row.prompt]) + starts[0][row.prompt])
        parts.append(torch.arange(tree.levels[-1].lengths[b]) + starts[-1][b])
        sequences.append(torch.cat(parts))
    longest = max(map(len, sequences))
    where = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(where)
    for b, sequence in enumerate(sequences):
        where[b, longest - len(sequence) :] = sequence
        mask[b, longest - len(sequence) :] = 1
    return where.to(tree.ids.device), mask.to(tree.ids.device)


def _gather(packed: Tensor, prefix: Tensor | None, where: Tensor) -> Tensor:
    """Gather keys or values (Hkv, N, D), with a prefix (G, Hkv, P, D) in front, at places (B, T) -> (B, Hkv, T, D)."""
    if prefix is not None:
        packed = torch.cat([prefix.to(packed.dtype).transpose(0, 1).flatten(1, 2), packed], dim=1)
    return packed[:, where].transpose(0, 1)


def _visible_ids(rows: Sequence[EncodedRow], mask: Tensor) -> Tensor:
    """The ids that repetition penalties see, (B, T): the row's text, and its first word where there is no text."""
    ids = torch.zeros_like(mask)
    for b, row in enumerate(rows):
        text = [atom for atom in row.context if atom >= 0] or [0]
        text = text[-mask.shape[1] :]
        ids[b] = text[0]
        ids[b, mask.shape[1] - len(text) :] = torch.tensor(text)
    return ids


def _generate_padded(
    model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput, options: dict[str, Any]
) -> Any:
    sequences = [embed_atoms(model, row.context, prompt, row.prompt) for row in rows]
    longest = max(map(len, sequences))
    embeds = torch.stack([torch.nn.functional.pad(s, (0, 0, longest - len(s), 0)) for s in sequences])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=model.device)
    with drawing(model, options), decoding(prompt, *counts(rows, model.device)):
        return model.generate(inputs_embeds=embeds, attention_mask=mask, **options)  # type: ignore[operator]


def _generate_behind_prefix(
    model: PreTrainedModel, row: EncodedRow, prompt: PromptOutput, options: dict[str, Any]
) -> list[list[int]]:
    """Generate for one row alone: padding between prefix and text would move the text."""
    if options.get("cache_implementation") == "static":
        raise ValueError("a static cache cannot be filled with a prefix where rows are padded")
    cache = prefix_cache(model, prompt, row.prompt, 1)
    before = cache.get_seq_length()
    embeds = embed_atoms(model, row.context, prompt, row.prompt)  # (T, d)
    if len(row.context) > 1:  # generate() feeds the last token itself
        mask = torch.ones(1, before + len(embeds) - 1, dtype=torch.long, device=model.device)
        model(inputs_embeds=embeds[None, :-1], attention_mask=mask, past_key_values=cache, use_cache=True)
    cache.batch_repeat_interleave(copies_of(model, options))
    mask = torch.ones(1, before + len(row.context), dtype=torch.long, device=model.device)
    with drawing(model, options), decoding(prompt, *counts([row], model.device), first=embeds[-1:]):
        output = model.generate(  # type: ignore[operator]
            input_ids=_visible_ids([row], mask), attention_mask=mask, past_key_values=cache, **options
        )
    return new_tokens(output, mask.shape[1], options)
