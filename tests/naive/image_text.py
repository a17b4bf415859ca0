"""Models that read images among text, called as transformers' own code is: one row at a time, with vectors and pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from softprompt.backbones.image_text import ImageTextBackbone
from softprompt.outputs import EncodedRow, PromptOutput

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "labels")


def logits(
    backbone: ImageTextBackbone, row: EncodedRow, target: tuple[int, ...], prompt: PromptOutput
) -> Tensor:
    """Logits of each token of a target, (M, V)."""
    model: Any = backbone.model
    image, atoms = backbone.reader.image_id, torch.tensor(row.context + target[:-1])
    word = 10  # any ordinary word
    ids = torch.where(atoms < 0, word, atoms)
    embeds = model.get_input_embeddings()(ids)  # (T, d)
    number = 0
    rows = []
    for atom, embed in zip(atoms.tolist(), embeds, strict=True):
        if atom < 0:
            assert prompt.tokens is not None
            rows.append(prompt.tokens[row.prompt, -1 - atom])
            continue
        if atom != image:
            if prompt.offset is not None and number < prompt.offset.shape[1]:
                embed = embed + prompt.offset[row.prompt, number]
            number += 1
        rows.append(embed)
    is_image = (atoms == image).long()[None]
    more: dict[str, Any] = {}
    if row.pictures:
        found = backbone.processor(
            text=[backbone.processor.image_token] * len(row.pictures),
            images=[[picture.image] for picture in row.pictures],
            return_tensors="np",
            padding=True,
        )
        inputs = {name: torch.from_numpy(value) for name, value in found.items() if name not in _TEXT}
        more |= {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
    kind = model.config.model_type
    if kind == "paligemma":
        more["token_type_ids"] = (torch.arange(len(ids)) >= len(row.context)).long()[None]
    elif kind == "gemma3":
        more["token_type_ids"] = is_image
    elif kind == "gemma4":
        more["mm_token_type_ids"] = is_image
    elif kind.startswith("qwen") and row.pictures:
        positions, _ = model.model.get_rope_index(
            ids[None], mm_token_type_ids=is_image, image_grid_thw=more["image_grid_thw"]
        )
        more["position_ids"] = positions
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    past = _cache(model, row, prompt)
    before = 0 if past is None else past.get_seq_length()
    output = model(
        inputs_embeds=torch.stack(rows)[None],
        attention_mask=torch.ones(1, before + len(ids), dtype=torch.long),
        past_key_values=past,
        use_cache=past is not None,
        **more,
    )
    return output.logits[0, len(row.context) - 1 :]


def _cache(model: PreTrainedModel, row: EncodedRow, prompt: PromptOutput) -> DynamicCache | None:
    if prompt.prefix is None:
        return None
    cache = DynamicCache(config=model.config)
    for layer, (key, value) in enumerate(prompt.prefix):
        cache.update(key[row.prompt, None], value[row.prompt, None], layer)
    return cache


def likelihoods(backbone: ImageTextBackbone, rows: list[EncodedRow], prompt: PromptOutput) -> Tensor:
    """log p of each token of each target of each row, in order."""
    found = []
    for row in rows:
        for target in row.targets:
            scores = logits(backbone, row, target, prompt).log_softmax(-1)
            found += [scores[i, token] for i, token in enumerate(target)]
    return torch.stack(found)


@torch.no_grad()
def greedy(backbone: ImageTextBackbone, row: EncodedRow, prompt: PromptOutput, count: int) -> list[int]:
    """The most probable next word, again and again."""
    written: tuple[int, ...] = ()
    for _ in range(count):
        scores = logits(backbone, row, (*written, 0), prompt)
        written += (int(scores[-1].argmax()),)
    return list(written)
