"""Encoder states of a sound are cached across epochs unless a prompt or training changes them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import softprompt as sp
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.encoder_decoder.test_backbone import FRONT, backbone_of, virtual_tokens
from tests.fitting.test_one_encoder_decoders import HEARD, SOUNDS
from tests.fitting.test_one_encoder_decoders import backbone_of as float_backbone_of
from tests.tiny.language import FRAMES

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


class Calls:
    """Counts the sounds that the encoder hears."""

    def __init__(self, backbone: EncoderDecoderBackbone) -> None:
        self.sounds = 0
        backbone.model.get_encoder().register_forward_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.sounds += len(kwargs["input_features"])


def scored(backbone: EncoderDecoderBackbone, rows: list[EncodedRow], tokens: Tensor) -> tuple[Tensor, Tensor]:
    found = backbone.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods()
    (gradient,) = torch.autograd.grad(found.square().sum(), tokens)
    return found, gradient


def test_kept_states_give_the_same_and_each_sound_is_heard_once() -> None:
    plain, keeping = backbone_of("whisper"), backbone_of("whisper")
    plain.sounds.limit = 0
    calls = Calls(keeping)
    tokens = virtual_tokens(keeping)
    expected = scored(plain, FRONT, tokens)
    assert len(plain.sounds) == 0
    first = scored(keeping, FRONT, tokens)
    assert calls.sounds == len(keeping.sounds) == len(FRONT)
    for again in (first, scored(keeping, FRONT, tokens), scored(keeping, FRONT[::-1], tokens)[1:]):
        assert_close(again[-1], expected[-1], **CLOSE)
    assert_close(first[0], expected[0], **CLOSE)
    reading = [EncodedRow(row.context, read=(0, len(row.context) - 1), media=row.media) for row in FRONT]
    prompt = PromptOutput(tokens=tokens.detach())
    assert_close(keeping.states(reading, prompt), plain.states(reading, prompt), **CLOSE)
    assert keeping.generate(FRONT, prompt, max_new_tokens=4) == plain.generate(
        FRONT, prompt, max_new_tokens=4
    )
    assert calls.sounds == len(FRONT)


def test_a_sound_has_the_same_bits_in_whatever_company_it_is_first_heard() -> None:
    one, other = backbone_of("whisper"), backbone_of("whisper")
    row = EncodedRow(FRONT[0].context, read=(7,), media=FRONT[0].media)
    prompt = PromptOutput(tokens=virtual_tokens(one).detach())
    one.score(FRONT, prompt)
    assert torch.equal(one.states([row], prompt), other.states([row], prompt))


def test_training_hears_each_sound_once_and_ends_as_without_keeping() -> None:
    results = []
    for limit in (None, 0):
        backbone = float_backbone_of("whisper", dtype=torch.float32)
        if limit is not None:
            backbone.sounds.limit = limit
        calls = Calls(backbone)
        settings = {"steps": 6, "batch_size": 4, "learning_rate": 0.1, "progress": False}
        tuned = sp.fit(backbone, HEARD, sp.PromptTuning(length=2), SOUNDS, **settings)
        results.append(tuned.module().tokens)
        assert calls.sounds == (len(SOUNDS) if limit is None else 6 * 4)  # 3 epochs
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_where_the_encoder_is_trained_or_has_a_prefix_nothing_is_kept() -> None:
    backbone = backbone_of("whisper")
    shapes = backbone.spec.key_values
    prefix = tuple((torch.randn(1, h, 2, d).double(), torch.randn(1, h, 2, d).double()) for h, d in shapes)
    backbone.score(FRONT, PromptOutput(tokens=virtual_tokens(backbone), prefix=prefix))
    assert len(backbone.sounds) == 0
    # A prefix of the decoder alone leaves the encoder as it is.
    decoder = tuple(
        (k[:, :, :0], v[:, :, :0]) if place == "encoder" else (k, v)
        for (k, v), place in zip(prefix, backbone.spec.places, strict=True)
    )
    backbone.score(FRONT, PromptOutput(tokens=virtual_tokens(backbone), prefix=decoder))
    assert len(backbone.sounds) == len(FRONT)
    backbone.sounds.forget()
    weight = next(backbone.model.get_encoder().parameters()).requires_grad_()
    found = backbone.score(FRONT, PromptOutput(tokens=virtual_tokens(backbone))).logits
    assert torch.autograd.grad(found.sum(), weight)[0].abs().max() > 0
    assert len(backbone.sounds) == 0


@pytest.mark.slow
def test_a_changed_weight_or_sound_is_heard_anew() -> None:
    backbone = backbone_of("whisper")
    calls = Calls(backbone)
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    rows = [
        EncodedRow(row.context, row.targets, media=row.media.clone())
        for row in FRONT
        if row.media is not None
    ]
    before = backbone.score(rows, prompt).logits
    with torch.no_grad():
        next(backbone.model.get_encoder().parameters()).mul_(2)
    changed = backbone.score(rows, prompt).logits
    assert calls.sounds == 2 * len(rows)
    assert (changed - before).abs().max() > 1e-3
    assert rows[0].media is not None
    rows[0].media.add_(1.0)
    backbone.score(rows, prompt)
    assert calls.sounds == 2 * len(rows) + 1
    del rows
    gc.collect()
    assert len(backbone.sounds) == 0


@pytest.mark.parametrize("room", [0, 1, 2, 4])
def test_the_cache_keeps_no_more_than_fits(room: int) -> None:
    backbone = backbone_of("whisper")
    calls = Calls(backbone)
    backbone.sounds.limit = room * (FRAMES // 2) * 48 * 8 + 7  # float64
    if not room:
        backbone.sounds.limit = 0
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    expected = backbone_of("whisper").score(FRONT, prompt).logits
    for _ in range(3):
        assert_close(backbone.score(FRONT, prompt).logits, expected, **CLOSE)
        assert len(backbone.sounds) == room
    assert calls.sounds == len(FRONT) + 2 * (len(FRONT) - room)
