"""Tiny random models of any type that transformers knows, for tests of what holds whatever the architecture."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 261
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


def tiny_model(
    kind: str,
    auto: Any = AutoModelForCausalLM,
    *,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
    **settings: Any,
) -> PreTrainedModel:
    """A random model of a type, seeded, in eval mode and frozen.

    kind      `model_type` of its config
    auto      the class of transformers that builds it
    dtype     of its weights
    without   names among SHARED that the config must not be given
    settings  of the config, beside SHARED
    """
    shared = {name: value for name, value in SHARED.items() if name not in without}
    config = AutoConfig.for_model(kind, **{**shared, **settings})
    config._experts_implementation = "eager"  # the others multiply in float32 at most
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases start at 0 and norms at 1: a wrong one would not show
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
    if getattr(model, "generation_config", None) is not None:  # BART would end every answer by force
        model.generation_config.forced_eos_token_id = model.generation_config.forced_bos_token_id = None
    return model.to(dtype).eval().requires_grad_(False)
