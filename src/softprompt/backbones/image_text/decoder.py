"""The text decoder of a model as a causal language model, for which an image is a row of virtual tokens.

Images and a prompt together are a prompt: a batch has one for each different pair of them, and runs it once, however many
questions are asked about the images.

Letters: G prompts, P virtual tokens, n vectors of an image, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from softprompt.backbones.engine import CompiledPrompt, prefix_lengths
from softprompt.backbones.image_text.features import ImageVectors
from softprompt.outputs import EncodedRow, Picture, PromptOutput


def text_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """The decoder with its head over words, a causal language model around the same modules.

    Raises ValueError where transformers has no such class for the decoder.
    """
    config = model.config.get_text_config()
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"transformers has no language model for a decoder of type {config.model_type!r}")
    with torch.device("meta"):
        decoder: Any = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(decoder, decoder.base_model_prefix, model.get_decoder())
    decoder.set_output_embeddings(model.get_output_embeddings())
    if left := [name for name, part in decoder.named_parameters() if part.is_meta]:
        raise ValueError(f"a {type(decoder).__name__} has weights that the model lacks, such as {left[0]}")
    decoder.generation_config = getattr(model, "generation_config", None) or decoder.generation_config
    decoder.eval()
    result: PreTrainedModel = decoder
    return result


Prompts = PromptOutput | CompiledPrompt


def with_images(
    rows: Sequence[EncodedRow], prompt: Prompts, image_id: int, vectors: Callable[[Picture], ImageVectors]
) -> tuple[list[EncodedRow], Prompts]:
    """Rows and prompts in which images are virtual tokens behind those of the prompt.

    rows      with placeholders
    prompt    that they carry
    image_id  id of the placeholders
    vectors   of an image
    """
    if not any(row.pictures for row in rows):
        return list(rows), prompt
    keys = [(row.prompt, row.pictures) for row in rows]
    pairs = list(dict.fromkeys(keys))
    heads = None
    if isinstance(prompt, CompiledPrompt):
        if len(pairs) < len(rows) and prompt.given is not None:
            prompt = (
                prompt.given
            )  # an image of several rows is longer than the prompt: that it is run once counts more
        else:
            heads, prompt = prompt.heads, prompt.prompt
    counts = _lengths(prompt)
    numbers = {pair: number for number, pair in enumerate(pairs)}
    changed = [
        replace(
            row,
            context=_placed(row.context, image_id, counts[row.prompt]),
            prompt=numbers[row.prompt, row.pictures],
            pictures=(),
        )
        for row in rows
    ]
    joined = _joined(prompt, pairs, counts, vectors)
    if heads is None:
        return changed, joined
    return changed, CompiledPrompt(tuple(heads[which] for which, _ in pairs), joined)


def _lengths(prompt: PromptOutput) -> list[int]:
    """The number of virtual tokens of each prompt."""
    if prompt.tokens is None:
        return [0] * prompt.count
    if prompt.lengths is not None and prompt.prefix is None:
        return [int(n) for n in prompt.lengths.tolist()]
    return [prompt.tokens.shape[1]] * prompt.count


def _placed(context: tuple[int, ...], image_id: int, first: int) -> tuple[int, ...]:
    """A context with virtual tokens in the place of its placeholders, the first of which has the number `first`."""
    atoms: list[int] = []
    number = first
    for atom in context:
        if atom != image_id:
            atoms.append(atom)
            continue
        atoms.append(-1 - number)
        number += 1
    return tuple(atoms)


def _joined(
    prompt: PromptOutput,
    pairs: Sequence[tuple[int, tuple[Picture, ...]]],
    counts: Sequence[int],
    vectors: Callable[[Picture], ImageVectors],
) -> PromptOutput:
    """A prompt for each pair of a prompt and images: the virtual tokens, then the images' vectors."""
    wide: list[Tensor] = []
    for which, pictures in pairs:
        parts = [vectors(picture).vectors for picture in pictures]
        if prompt.tokens is not None:
            own = prompt.tokens[which if len(prompt.tokens) > 1 else 0, : counts[which]]
            # Virtual tokens are float32, and vectors of images as precise as the model that reads both.
            parts = [own, *(part.to(torch.promote_types(part.dtype, own.dtype)) for part in parts)]
        if parts:
            wide.append(torch.cat([part.to(parts[-1].dtype) for part in parts]))
        else:
            wide.append(torch.zeros(0, 0))
    like = max(wide, key=lambda one: one.shape[-1])
    wide = [one if one.shape[-1] else like[:0] for one in wide]
    numbers = [number for number, _ in pairs]

    def chosen(tensor: Tensor) -> Tensor:
        return tensor[[n if len(tensor) > 1 else 0 for n in numbers]]

    before = prefix_lengths(prompt)
    lengths = torch.tensor([len(one) for one in wide]) if before is None else chosen(before)
    return replace(
        prompt,
        tokens=torch.nn.utils.rnn.pad_sequence(wide, batch_first=True),  # (G, P + n, d)
        prefix=prompt.prefix and tuple((chosen(key), chosen(value)) for key, value in prompt.prefix),
        offset=None if prompt.offset is None else chosen(prompt.offset),
        token_offset=prompt.token_offset
        and tuple(prompt.token_offset[n if len(prompt.token_offset) > 1 else 0] for n in numbers),
        lengths=lengths,
    )
