"""Whether prompts and images work together on a model: trials on an image tell, not the model's name.

The judge is the whole model called with ids, as its authors call it, one row at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.engine import TRIAL_ERRORS, words_disagree
from softprompt.backbones.image_text.decoder import with_images
from softprompt.backbones.image_text.whole import WholeModel, as_rows
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits


class _RefusedError(ValueError):
    """A sentence that says what a model does otherwise."""


@torch.no_grad()
def check_images(whole: WholeModel, name: str) -> None:
    """Raise ValueError, with the reason, for a model that images and virtual tokens cannot be given together."""
    model = whole.plain
    try:
        _try(whole)
    except TRIAL_ERRORS as error:
        said = str(error) if isinstance(error, _RefusedError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{name} ({type(model).__name__}) cannot be given an image together with virtual tokens ({said}). {_INSTEAD}"
        ) from error


_INSTEAD = (
    "Load its text decoder alone with text_only=True, or take a model such as SmolVLM, LLaVA or Qwen2.5-VL"
)


def refuse_other_kinds(model: PreTrainedModel, name: str) -> None:
    """Raise ValueError, with the reason, for a model that is built otherwise than those of the family."""
    if (reason := _other_kind(model)) is not None:
        raise ValueError(f"{name} ({type(model).__name__}) is refused: {reason}. {_INSTEAD}")


def _other_kind(model: PreTrainedModel) -> str | None:
    """Why a model that is built otherwise is none of the family; None: it is built as those of the family are."""
    if getattr(model.config, "is_encoder_decoder", False):
        return "its encoder reads the image and the text, and its decoder writes; softprompt gives images to decoders only"
    trunk = model.base_model
    if hasattr(trunk, "get_image_tokens"):
        return "an image becomes token ids of its own vocabulary, so that there are no vectors of images to put behind a prompt"
    if not hasattr(trunk, "get_image_features") or getattr(model.config, "image_token_id", None) is None:
        return "images enter through layers of their own, not among the tokens of the text"
    return None


def trial_rows(whole: WholeModel) -> list[EncodedRow]:
    """Two rows of one target each, the first with two images and a virtual token between them, the second with one image."""
    numbers = np.random.default_rng(0)
    images = [
        whole.features.reader(numbers.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in ((48, 64), (60, 40))
    ]
    a, b = whole.filler, whole.filler + 1
    # Virtual tokens stand in front, between and behind; some processors are for images at the very front.
    two = (-1, a, *images[0].tokens, -2, *images[1].tokens, b, a)
    one = (*images[1].tokens, -1, b, -2, a, a)
    return [
        EncodedRow(two, ((b, a),), pictures=tuple(images)),
        EncodedRow(one, ((a, b),), pictures=(images[1],)),
    ]


def _try(whole: WholeModel) -> None:
    model, rows = whole.plain, trial_rows(whole)
    table = model.get_input_embeddings()
    words = table(torch.tensor([whole.filler, whole.filler + 2], device=model.device))  # (2, d)
    copies = PromptOutput(tokens=words[None])
    as_words = [
        replace(row, context=tuple(whole.filler + 2 if atom == -2 else max(atom, -1) for atom in row.context))
        for row in rows
    ]
    as_words = as_rows(as_words, whole.filler)
    expected = torch.cat([whole_logits(whole, row) for row in as_words])
    found = whole.score(rows, copies)
    _judge(whole, found.logits[found.position], expected, "words as vectors give other answers than as ids")
    other = PromptOutput(tokens=words.flip(0)[None] * 1.5)
    moved = whole.score(rows, other)
    if bool((moved.logits == found.logits).all()):
        raise _RefusedError("virtual tokens change nothing")
    turned = replace(as_words[0], pictures=as_words[0].pictures[::-1])
    if turned.pictures[0].tokens == turned.pictures[1].tokens and bool(
        (whole_logits(whole, turned) == whole_logits(whole, as_words[0])).all()
    ):
        raise _RefusedError("the order of images changes nothing")
    for row in as_words:
        options = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False, "num_beams": 1}
        [new] = whole.generate([row], PromptOutput(), whole.filler, options)
        logits = whole_logits(whole, replace(row, targets=(tuple(new),)))
        best = logits.max(-1).values
        chosen = logits[torch.arange(len(new)), torch.tensor(new, device=logits.device)]
        if not bool((chosen >= best - 0.05 * best.abs().clamp_min(1)).all()):
            raise _RefusedError("generate does not continue a row as the model's own logits say")


def whole_logits(whole: WholeModel, row: EncodedRow) -> Tensor:
    """Logits of a row's target from the model as its authors call it, with ids and pixels, (M, V)."""
    [target] = row.targets
    inputs = whole.inputs_of(row)
    with whole.lock:
        logits: Tensor = whole.plain(**inputs, use_cache=False).logits[0]
    return logits[len(row.context) - 1 : len(row.context) - 1 + len(target)]


def _judge(whole: WholeModel, found: Tensor, expected: Tensor, reason: str) -> None:
    difference = words_disagree(found, expected, whole.plain.dtype, half=0.06)
    if difference is not None:
        raise _RefusedError(f"{reason}: logits differ by {difference:.2g}")


@torch.no_grad()
def decodes_alone(
    make: Callable[[], CausalBackbone], whole: WholeModel
) -> tuple[CausalBackbone | None, str | None]:
    """The text decoder, if it answers as the whole model does when images are virtual tokens; else None, and why not.

    make   makes the decoder's backbone
    whole  the judge
    """
    rows = trial_rows(whole)
    words = whole.plain.get_input_embeddings()(torch.tensor([0, 1], device=whole.plain.device))
    prompt = PromptOutput(tokens=words[None])
    try:
        decoder = make()
        decoder.check()
        changed, joined = with_images(rows, prompt, whole.image_id, whole.features)
        found, expected = decoder.score(changed, joined), whole.score(rows, prompt)
    except TRIAL_ERRORS as error:
        return None, f"its decoder cannot be run alone ({type(error).__name__}: {error})"
    difference = words_disagree(_scored(found), _scored(expected), whole.plain.dtype, half=0.06)
    if difference is not None:
        return None, (
            "its decoder answers otherwise when images are rows of vectors, because they see themselves or have positions of"
            f" their own (logits differ by {difference:.2g})"
        )
    return decoder, None


def _scored(logits: TargetLogits) -> Tensor:
    return logits.logits[logits.position]
