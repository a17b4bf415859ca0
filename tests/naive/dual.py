"""Prompts in dual encoders the obvious way: the model's own forward, one image and one whole padded text at a time.

Words and virtual tokens are put together as input embeddings, which the text tower is made to take for those of its
tokens. Nothing here but the model's own parts is shared with the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.images import ImageRule, normalized


def text_embedding(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    atoms: Sequence[int],
    context: Tensor | None,
    offset: Tensor | None = None,
) -> Tensor:
    """(e,) of length 1. atoms: the whole text, begin and end included, virtual token k as -1 - k; context (M, d).

    offset  (s, d): row i is added to the embedding of the i-th token that is not virtual
    """
    length = model.config.text_config.max_position_embeddings
    kind = model.config.model_type
    pad = tokenizer.pad_token_id
    ids = [max(atom, 0) for atom in atoms] + [pad] * (length - len(atoms))
    table = model.text_model.get_input_embeddings()
    rows = table(torch.tensor(ids))
    embeds = torch.stack(
        [context[-1 - atoms[i]] if i < len(atoms) and atoms[i] < 0 else rows[i] for i in range(length)]
    )  # type: ignore[index]
    if offset is not None:
        # SigLIP sees its padding: it is text there.
        words = [
            i for i in range(length if kind == "siglip" else len(atoms)) if i >= len(atoms) or atoms[i] >= 0
        ]
        shifts = dict(zip(words, offset, strict=False))
        embeds = torch.stack([embeds[i] + shifts.get(i, torch.zeros(())) for i in range(length)])
    handle = table.register_forward_hook(lambda *_: embeds[None])
    # CLIP and BERT are given the mask, SigLIP sees its padding.
    mask = None if kind == "siglip" else torch.tensor([[1] * len(atoms) + [0] * (length - len(atoms))])
    try:
        feature = model.get_text_features(input_ids=torch.tensor([ids]), attention_mask=mask).pooler_output[0]
    finally:
        handle.remove()
    return feature / feature.norm()


def image_embedding(model: Any, image: Tensor, rule: ImageRule) -> Tensor:
    """(e,) of length 1. image (3, H, W)."""
    pixels = normalized(image[None], rule, next(model.parameters()).dtype)
    feature = model.get_image_features(pixel_values=pixels).pooler_output[0]
    return feature / feature.norm()


def scores(model: PreTrainedModel, image: Tensor, classes: Sequence[Sequence[Tensor]]) -> Tensor:
    """(K,) logits of an image (e,) against classes, each given as its texts' embeddings."""
    parts: Any = model
    bias = getattr(parts, "logit_bias", torch.zeros(()))
    found = []
    for texts in classes:
        mean = torch.stack(list(texts)).mean(0)
        found.append((image @ (mean / mean.norm())) * parts.logit_scale.exp() + bias)
    return torch.stack(found).reshape(len(classes))
