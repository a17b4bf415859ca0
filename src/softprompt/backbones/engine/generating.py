"""What all families that generate do around transformers' `generate`: check options, count tokens, cut the answers.

Letters: B rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.outputs import EncodedRow
from softprompt.surroundings import DRAWING

SET_HERE = {"past_key_values", "inputs_embeds", "input_ids", "attention_mask", "position_ids"}
NOT_WITH_A_FILLED_CACHE = {"assistant_model", "prompt_lookup_num_tokens", "max_length"}
CACHES = (None, "dynamic", "static")  # values of cache_implementation


def check_options(options: dict[str, Any], also: frozenset[str] = frozenset()) -> None:
    """Raise ValueError for options that are set here, those of `also` included, or that do not work with a filled cache."""
    if found := (SET_HERE | also) & options.keys():
        raise ValueError(f"generate() sets {sorted(found)} itself; remove them from the options")
    if found := NOT_WITH_A_FILLED_CACHE & options.keys():
        raise ValueError(f"{sorted(found)} cannot be used behind a prompt; give the length as max_new_tokens")
    if (kind := options.get("cache_implementation")) not in CACHES:
        raise ValueError(f"cache_implementation is {kind!r}: behind a prompt it may be 'dynamic' or 'static'")


def drawing(model: PreTrainedModel, options: dict[str, Any]) -> AbstractContextManager[Any]:
    """Within the block words may be drawn from torch's global generators: nobody else does so meanwhile."""
    asked = options.get("do_sample")
    if asked is None:
        asked = getattr(model.generation_config, "do_sample", False)
    return DRAWING if asked else nullcontext()


def counts(rows: Sequence[EncodedRow], device: torch.device) -> tuple[Tensor, Tensor]:
    """The number of text tokens of each row's context, and the number of its prompt, (B,) each."""
    texts = [sum(atom >= 0 for atom in row.context) for row in rows]
    return torch.tensor(texts, device=device), torch.tensor([row.prompt for row in rows], device=device)


def copies_of(model: PreTrainedModel, options: dict[str, Any]) -> int:
    """How many sequences are decoded for each row, as beams or samples."""
    named = (
        options.get(n) or getattr(model.generation_config, n, None) or 1
        for n in ("num_beams", "num_return_sequences")
    )
    return max(named)


def new_tokens(output: Any, start: int, options: dict[str, Any]) -> list[list[int]]:
    """The generated ids from place `start` on, without the padding behind the end mark."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    pad = options["pad_token_id"]
    new = []
    for sequence in sequences[:, start:].tolist():
        while len(sequence) > 1 and sequence[-1] == pad and sequence[-2] == pad:
            sequence.pop()
        new.append(sequence)
    return new
