"""Checks for calls that an attached prompt cannot stand in front of."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


def check_arguments(model: PreTrainedModel, values: dict[str, Any]) -> None:
    """Raise ValueError for arguments of a forward that a prompt cannot be put in front of."""
    if values.get("input_ids") is None or values.get("inputs_embeds") is not None:
        raise ValueError(
            "inside attach() the model takes input_ids, and no inputs_embeds; leave the `with` for softprompt's own calls"
            " (predict, evaluate, fit) on the same model"
        )
    cache = values.get("past_key_values")
    if cache is not None and (not isinstance(cache, DynamicCache) or cache.is_compileable):
        raise ValueError(
            f"inside attach() the cache is a DynamicCache, which transformers takes by itself, not a {type(cache).__name__}:"
            " leave cache_implementation and past_key_values out"
        )
    mask = values.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
        raise ValueError("inside attach() attention_mask is (rows, tokens), 1 for a token and 0 for padding")
    positions = values.get("position_ids")
    if mask is None and cache is None and positions is not None and bool((positions.diff(dim=-1) != 1).any()):
        raise ValueError(
            "position_ids without an attention_mask may mean texts packed into one row; inside attach() give each text a"
            " row of its own, and an attention_mask"
        )
    if model.training and any(getattr(part, "gradient_checkpointing", False) for part in model.modules()):
        raise ValueError(
            "gradient checkpointing drops the cache in which an attached prompt stands: call"
            " model.activation_checkpointing_disable(), or model.eval(), which switches dropout off as well"
        )


def check_beginnings(begin: int | None, ids: Tensor, mask: Tensor) -> None:
    """Raise ValueError if a row begins with the special token that the attached prompt already has in front.

    begin  id of that token; None: there is none
    ids    (B, T)
    mask   (B, T)
    """
    if begin is None or not ids.shape[1]:
        return
    first = ids.gather(1, mask.argmax(dim=1, keepdim=True))  # (B, 1)
    if bool((first == begin).any()):
        raise ValueError(
            f"a row begins with token {begin}, which the attached prompt already has in front: tokenize your texts with"
            " add_special_tokens=False"
        )
