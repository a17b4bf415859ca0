"""A saved prompt as the tests write it."""

from __future__ import annotations

from typing import Any

import torch

from softprompt.store import BackboneIdentity, SavedPrompt

IDENTITY = BackboneIdentity(
    name="tiny/llama",
    family="causal-lm",
    width=4,
    vocabulary=11,
    config_digest="c" * 64,
    table_digest="a" * 64,
    tokenizer_digest="b" * 64,
)


def sample(**changes: Any) -> SavedPrompt:
    """A prompt of three virtual tokens of width 4, with an index buffer."""
    generator = torch.Generator().manual_seed(0)
    fields: dict[str, Any] = {
        "method": {"name": "prompt-tuning", "length": 3, "init": "vocab"},
        "task": {
            "name": "text-classification",
            "template": "{text}\nGefühl: | `x`",
            "labels": {"neg": [" bad"], "pos": [" 好"]},
        },
        "backbone": IDENTITY,
        "tensors": {"tokens": torch.randn(3, 4, generator=generator), "ids": torch.tensor([5, 0, 2])},
        "recipe": {"lr": 0.3, "steps": 100, "seeds": [0, 1, 2]},
        "metrics": {"validation": {"accuracy": 0.875, "confusion": [[3, 1], [0, 4]]}, "loss": 1e-05},
        "notes": {"data": "twenty rows"},
    }
    return SavedPrompt(**{**fields, **changes})
