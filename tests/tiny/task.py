"""A task that a tiny random model can learn through a prompt: which of two words a text begins with."""

from __future__ import annotations

from typing import Any

import torch

from softprompt import TextClassification
from softprompt.backbones.causal.backbone import CausalBackbone
from tests.tiny.language import Architecture, tiny_causal_lm, tiny_tokenizer

TASK = TextClassification("{text} sentiment", labels={"neg": " bad", "pos": " good"})

_ENDINGS = ("", " and", " again", " now", " the house", " never", " by the river", " at night")
ROWS: list[dict[str, Any]] = [
    {"text": f"{word}{ending}", "label": label}
    for ending in _ENDINGS
    for word, label in (("film", "pos"), ("dog", "neg"))
]


def tiny_backbone(
    architecture: Architecture = "llama",
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **settings: Any,
) -> CausalBackbone:
    """A frozen tiny model with a tokenizer; `settings` are those of `tiny_causal_lm` and `tiny_tokenizer`."""
    for_tokenizer = {name: settings.pop(name) for name in ("bos", "padding_side") if name in settings}
    model = tiny_causal_lm(architecture, dtype=dtype, seed=seed, **settings).requires_grad_(False)
    return CausalBackbone(model, tiny_tokenizer(**for_tokenizer), name=f"tiny/{architecture}")
