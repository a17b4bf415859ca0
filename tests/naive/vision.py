"""Visual prompts the obvious way: one image at a time, rows concatenated in every layer, then dropped again.

The equations of Jia et al. 2022 (section 3): x class token (with registers and the like), E patches, P prompts, Z what
they become. Nothing here but the models' own parts is shared with the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, CLIPVisionModel, PreTrainedModel, SiglipVisionModel


def parts(model: Any) -> tuple[nn.Module | None, list[nn.Module], nn.Module]:
    """Norm in front, layers, norm behind."""
    if isinstance(model, CLIPVisionModel):
        return model.pre_layrnorm, list(model.encoder.layers), model.post_layernorm
    if isinstance(model, SiglipVisionModel):
        return None, list(model.encoder.layers), model.post_layernorm
    layers = model.encoder.layer if hasattr(model, "encoder") else model.layers
    return None, list(layers), model.layernorm


def embedded(model: Any, image: Tensor) -> Tensor:
    """Rows of one image (3, H, W) with positions, (T, d)."""
    size = model.config.image_size
    other = image.shape[1:] != (size, size)
    if other and "dinov2" not in model.config.model_type:
        return model.embeddings(image[None], interpolate_pos_encoding=True)[0]
    return model.embeddings(image[None])[0]


def state(
    model: PreTrainedModel,
    image: Tensor,
    patches: int,
    *,
    shallow: Tensor | None = None,
    entry: int = 0,
    deep: Sequence[Tensor | None] | None = None,
    read: str = "class",
) -> Tensor:
    """What the head reads, (d,).

    shallow  (P, d) that joins the rows in front of layer `entry`
    deep     per layer (P, d) or None
    """
    before, layers, after = parts(model)
    rows = embedded(model, image)
    has_class = len(rows) > patches
    x, rest = (rows[:1], rows[1:]) if has_class else (rows[:0], rows)  # rest: registers and patches
    none = rows[:0]
    Z = none
    if shallow is not None and entry == 0:
        Z = shallow
    P = [none if p is None else p for p in deep or [None] * len(layers)]
    if before is not None:
        x, Z, rest = before(x), before(Z), before(rest)
        P[0] = before(P[0])
    dropped = none
    for i, layer in enumerate(layers):
        if shallow is not None and entry == i > 0:
            Z = shallow
        out = layer(torch.cat([x, P[i], Z, rest])[None], None)[0]
        x, dropped, Z, rest = out.split([len(x), len(P[i]), len(Z), len(rest)])
    E = rest[len(rest) - patches :]
    match read:
        case "class":
            return after(x)[0]
        case "mean":
            return after(E).mean(0)
        case "prompts":
            return after(torch.cat([dropped, Z])).mean(0)
        case "mean-with-prompts":
            return after(torch.cat([dropped, Z, E]).mean(0))
        case _:
            return model.head(after(torch.cat([x, rest]))[None])[0]  # type: ignore[operator]


def plain_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    """transformers' eager attention, but for its softmax, which is float32 whatever it is given."""
    weights = (query @ key.transpose(-2, -1) * scaling).softmax(dim=-1)
    return (weights @ value).transpose(1, 2), weights


def class_attention(
    model: PreTrainedModel, image: Tensor, patches: int, **prompts: Any
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per layer what the class token attends to, (H, prompts), (H, class token and the like), (H, patches).

    The weights of plain attention over all rows; prompts as in `state`.
    """
    weights: list[Tensor] = []
    layers = parts(model)[1]
    attentions = [next(m for m in layer.children() if hasattr(m, "k_proj")) for layer in layers]
    hooks = [a.register_forward_hook(lambda module, given, out: weights.append(out[1])) for a in attentions]
    implementation = model.config._attn_implementation
    AttentionInterface.register("naive", plain_attention)
    model.set_attn_implementation("naive")
    try:
        state(model, image, patches, **prompts)
    finally:
        model.set_attn_implementation(implementation)
        for hook in hooks:
            hook.remove()
    T = len(embedded(model, image))
    found = []
    for layer in weights:
        first = layer[0, :, 0]  # (1, H, T + P, T + P) -> (H, T + P)
        P = first.shape[1] - T
        special = T - 1 - patches
        x, prompt, rest, E = first.split([1, P, special, patches], dim=1)
        found.append((prompt, torch.cat([x, rest], dim=1), E))
    return found
