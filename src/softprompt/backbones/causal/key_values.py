"""Key-value prefixes and the cache of a causal model: its shapes, what a text leaves in it, and how to fill one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.concerns import warn_of
from softprompt.outputs import EncodedRow, KeyValue, PromptOutput


def key_value_shapes(model: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """(Hkv, D) of every layer, taken from the cache that one token fills: configs name these numbers in many ways.

    Empty for a model that takes no prefix: one with layers without keys and values (state-space), with layers that share
    them, or with keys and values of different sizes.
    """
    try:
        found = own_key_values(model, torch.zeros(1, dtype=torch.long))
    except (TypeError, NotImplementedError, AttributeError, RuntimeError, ValueError, KeyError, IndexError):
        return ()
    if len(found) != model.config.get_text_config().num_hidden_layers:
        return ()
    if any(key.shape != value.shape or key.dim() != 4 or key.shape[2] != 1 for key, value in found):
        return ()
    return tuple((key.shape[1], key.shape[3]) for key, _ in found)


@torch.no_grad()
def own_key_values(model: PreTrainedModel, ids: Tensor) -> tuple[KeyValue, ...]:
    """Keys and values that the model computes for a text (n,), per layer (1, Hkv, n, D) float32, a copy on the CPU."""
    cache = DynamicCache()
    model(input_ids=ids.to(model.device)[None], past_key_values=cache, use_cache=True)
    return tuple(
        (layer.keys.float().cpu().clone(), layer.values.float().cpu().clone())  # type: ignore[union-attr]
        for layer in cache.layers
    )


def prefix_cache(model: PreTrainedModel, prompt: PromptOutput, which: int, rows: int) -> DynamicCache:
    """A cache that holds a copy of one prompt's prefix for each row. Differentiable in the prefix.

    model   that reads the cache
    prompt  with the prefixes
    which   number of the prompt
    rows    number of rows
    """
    assert prompt.prefix is not None
    cache = DynamicCache(config=model.config)
    taken = prompt.prefix[0][0].shape[2] if prompt.lengths is None else int(prompt.lengths[which])
    for layer, pair in enumerate(prompt.prefix):
        key, value = (
            part[which, :, :taken].to(model.device, model.dtype).expand(rows, -1, -1, -1) for part in pair
        )  # (G, Hkv, P, D) -> (rows, Hkv, P, D)
        cache.update(key, value, layer)
    return cache


def warn_of_windows(model: PreTrainedModel, rows: Sequence[EncodedRow], prompt: PromptOutput) -> None:
    """Warn of the first row whose end does not see its whole prefix, or sees none of its virtual tokens.

    A layer with a sliding window of n tokens carries information n - 1 places further. Tokens that stand further back than
    all layers together reach have no effect and no gradient.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    windowed = sum(kind == "sliding_attention" for kind in kinds)
    if not window or not windowed:
        return
    said = None
    if prompt.prefix is not None:
        said = _cut_off_prefix(rows, prompt, window)
    if said is None and prompt.tokens is not None and windowed == len(kinds):
        said = _lost_tokens(rows, windowed * (window - 1))
    if said is not None:
        warn_of([f"{windowed} of {len(kinds)} layers attend to the last {window} tokens only: {said}"])


def _cut_off_prefix(rows: Sequence[EncodedRow], prompt: PromptOutput, window: int) -> str | None:
    """The warning for the first row that is longer than a window together with its prefix; None if there is no such row."""
    assert prompt.prefix is not None
    key = prompt.prefix[0][0]
    lengths = [key.shape[2]] * key.shape[0] if prompt.lengths is None else prompt.lengths.tolist()
    for row in rows:
        before = lengths[row.prompt]
        answer = max(map(len, row.targets), default=1) - 1
        if before and before + len(row.context) + answer > window:
            return (
                f"in long rows they do not see all of a prefix of {before} positions. Use a shorter prefix or shorter rows"
                " (max_tokens)"
            )
    return None


def _lost_tokens(rows: Sequence[EncodedRow], reach: int) -> str | None:
    """The warning for the first row that is read only out of reach of its virtual tokens; None if there is no such row."""
    for row in rows:
        if len(row.context) <= reach + 1:  # nothing in it is further apart
            continue
        soft = [place for place, atom in enumerate(row.context) if atom < 0]
        read = row.read or (len(row.context) - 1,)
        if soft and not any(0 <= place - s <= reach for place in read for s in soft):
            return (
                f"together they reach {reach} tokens back, and in long rows all virtual tokens stand further back and are"
                " without effect. Put {soft} nearer to the end of the template, or use shorter rows (max_tokens)"
            )
    return None
