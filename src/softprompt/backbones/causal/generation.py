"""Generation behind a compiled prompt.

The rows are read in one packed pass. Their keys and values are then laid out as transformers' generate expects them:
padding on the far left, prompt and text without a gap, all but the last token in the cache. So a row's tokens keep the
distances and positions that they have alone, whatever else is in the batch, and sliding windows reach the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, StaticCache

from softprompt.backbones.causal.key_values import prefix_cache
from softprompt.backbones.causal.padded import embed_atoms
from softprompt.backbones.engine import (
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
)
from softprompt.outputs import EncodedRow, PromptOutput


@torch.no_grad()
def generate(
    runner: PackedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[EncodedRow],
    prompt: PromptOutput | CompiledPrompt,
    options: dict[str, Any],
    *,
    packed: bool,
) -> list[list[int]]:
    """See CausalBackbone.generate.

    runner     the model
    tokenizer  the model's own
    rows       whose contexts are continued
    prompt     that they carry
    options    of transformers' generate
    packed     whether rows are read in one packed pass

    Raises ValueError for options that cannot be combined with a filled cache.
    """
    check_options(options)
    model = runner.plain
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    # The rows are read into a cache, so generate() must use it; the tokens are the same as without one.
    options = {"pad_token_id": eos if pad is None else pad, **options, "use_cache": True}
    heads, plain = split_prompt(rows, prompt)
    rows = [replace(row, targets=()) for row in rows]
    if not packed:
        return _generate_padded(model, rows, plain, options)

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
    return new_tokens(output, mask.shape[1], options)


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
) -> list[list[int]]:
    if prompt.prefix is not None:
        return [new for row in rows for new in _generate_behind_prefix(model, row, prompt, options)]
    sequences = [embed_atoms(model, row.context, prompt, row.prompt) for row in rows]
    longest = max(map(len, sequences))
    embeds = torch.stack([torch.nn.functional.pad(s, (0, 0, longest - len(s), 0)) for s in sequences])
    mask = torch.tensor([[0] * (longest - len(s)) + [1] * len(s) for s in sequences], device=model.device)
    with drawing(model, options), decoding(prompt, *counts(rows, model.device)):
        output = model.generate(inputs_embeds=embeds, attention_mask=mask, **options)  # type: ignore[operator]
    return new_tokens(output, 0, options)


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
