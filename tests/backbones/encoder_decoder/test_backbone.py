"""Rows of an encoder-decoder behind a prompt against plain concatenation, in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import seq2seq as naive
from tests.tiny.language import FRAMES, MELS, SEQ2SEQ, tiny_seq2seq, tiny_tokenizer

P = 5
START = {"t5": (0,), "bart": (2, 1), "whisper": ()}
LABELS = ((40,), (41, 42), (41, 42, 43), (50, 51))
WORDS = ((40,), (41,))


def backbone_of(architecture: str, **settings: Any) -> EncoderDecoderBackbone:
    model = tiny_seq2seq(architecture, **settings).requires_grad_(False)  # type: ignore[arg-type]
    return EncoderDecoderBackbone(model, tiny_tokenizer(closed=True), name=architecture)


def virtual_tokens(
    backbone: EncoderDecoderBackbone, prompts: int = 1, length: int = P, seed: int = 1
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (prompts, length, backbone.spec.width)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def row(*context: int, prompt: int = 0, targets: tuple[tuple[int, ...], ...] = LABELS) -> EncodedRow:
    """A row with a spectrogram of its own, which only a speech model looks at."""
    generator = torch.Generator().manual_seed(sum(context))
    sound = torch.randn(MELS, FRAMES, generator=generator, dtype=torch.float64)
    return EncodedRow(context, targets, prompt=prompt, media=sound)


def front(
    *ids: int, prompt: int = 0, length: int = P, targets: tuple[tuple[int, ...], ...] = LABELS
) -> EncodedRow:
    return row(*(-1 - k for k in range(length)), *ids, prompt=prompt, targets=targets)


FRONT = [front(20, 21, 2), front(*range(20, 44), 2), front(20, 2), front(*range(30, 52), 2, targets=WORDS)]
INLINE = [
    row(-1, -2, 20, 21, -3, -4, -5, 22, targets=((60, 61, 62),)),
    row(30, -1, -2, -3, -4, 25, -5, 2, targets=((63,),)),
    row(-1, -2, -3, -4, -5, 31, targets=WORDS),
]
LAYOUTS = {"front": FRONT, "inline": INLINE, "single row": FRONT[:1]}


def naive_tokens(
    backbone: EncoderDecoderBackbone, rows: list[EncodedRow], tokens: Tensor, offset: Tensor | None = None
) -> Tensor:
    return torch.cat([
        naive.target_log_likelihood(
            backbone.model, r, t, tokens[r.prompt], None if offset is None else offset[r.prompt], start=START[backbone.name]
        )
        for r in rows
        for t in r.targets
    ])  # fmt: skip


def assert_same(found: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), leaves),
        torch.autograd.grad((expected * weights).sum(), leaves),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


def scored(backbone: EncoderDecoderBackbone, rows: list[EncodedRow], prompt: PromptOutput) -> Tensor:
    return backbone.score(rows, prompt).token_log_likelihoods()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_batch_equals_plain_concatenation(architecture: str, layout: str, checkpointing: bool) -> None:
    backbone = backbone_of(architecture).with_settings(gradient_checkpointing=checkpointing)
    rows, tokens = LAYOUTS[layout], virtual_tokens(backbone)
    found = scored(backbone, rows, PromptOutput(tokens=tokens))
    assert_same(found, naive_tokens(backbone, rows, tokens), [tokens])


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_offsets_follow_the_text_not_the_prompt(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens, offset = virtual_tokens(backbone), virtual_tokens(backbone, length=6, seed=2)
    for rows in (FRONT, INLINE):
        found = scored(backbone, rows, PromptOutput(tokens=tokens, offset=offset))
        assert_same(found, naive_tokens(backbone, rows, tokens, offset), [tokens, offset])


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_prompts_of_different_lengths_in_one_batch_equal_each_alone(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone, prompts=3)
    rows = [
        front(20, 21, 2, prompt=1, length=2),
        front(20, 21, 30, prompt=0, targets=WORDS),
        front(22, prompt=2, length=4),
        front(23, 24, 25, 2, prompt=1, length=2),
    ]
    prompt = PromptOutput(tokens=tokens, lengths=torch.tensor([5, 2, 4]))
    found = scored(backbone, rows, prompt)
    assert_same(found, naive_tokens(backbone, rows, tokens), [tokens])
    of_first_row = scored(backbone, rows, prompt)[: sum(map(len, LABELS))].sum()
    (gradient,) = torch.autograd.grad(of_first_row, [tokens])
    assert gradient[1, :2].abs().min() > 0
    assert gradient[0].abs().max() == gradient[2].abs().max() == 0
    with pytest.raises(ValueError, match="asks for virtual token 2, prompt 1 has 2"):
        backbone.score([front(20, prompt=1)], prompt)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_states_are_those_of_plain_concatenation_wherever_they_are_read(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone)
    rows = [replace(r, read=read) for r, read in zip(FRONT, [(0, 7), (7,), (), (3, 3)], strict=True)]
    found = backbone.states(rows, PromptOutput(tokens=tokens))
    expected = torch.cat([naive.states(backbone.model, r, tokens[0])[list(r.read)] for r in rows])
    assert_same(found.flatten(), expected.flatten(), [tokens])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_a_batch_generates_what_each_row_generates_alone(architecture: str) -> None:
    backbone = backbone_of(architecture)
    tokens = virtual_tokens(backbone, prompts=2).detach()
    prompt = PromptOutput(tokens=tokens, lengths=torch.tensor([5, 3]))
    rows = [front(*r.context[P:]) for r in FRONT] + [front(22, n, 2, prompt=1, length=3) for n in (7, 8)]
    kept = backbone.compile(rows, prompt)
    found = backbone.generate(rows, kept, max_new_tokens=9, do_sample=False, eos_token_id=699)
    start = START[architecture]
    assert found == [naive.greedy(backbone.model, r, tokens[r.prompt], 9, start=start) for r in rows]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_beams_and_samples_of_a_batch_equal_those_of_each_row(architecture: str) -> None:
    backbone = backbone_of(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    beams = {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    together = backbone.generate(FRONT, prompt, **beams)
    assert together == [sequence for r in FRONT for sequence in backbone.generate([r], prompt, **beams)]
    assert len(together) == 2 * len(FRONT)
    samples = []
    for _ in range(2):
        torch.manual_seed(0)
        samples.append(backbone.generate(FRONT, prompt, max_new_tokens=6, do_sample=True))
    assert samples[0] == samples[1]


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_a_static_cache_gives_the_same_words(architecture: str) -> None:
    backbone = backbone_of(architecture)
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 699}
    expected = backbone.generate(FRONT, prompt, **greedy)
    assert backbone.generate(FRONT, prompt, cache_implementation="static", **greedy) == expected


def test_generation_refuses_options_that_are_set_behind_a_prompt() -> None:
    backbone = backbone_of("t5")
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    with pytest.raises(ValueError, match="a static cache is refused in a speech model and behind a prefix"):
        backbone_of("whisper").generate(FRONT, prompt, cache_implementation="static")
    with pytest.raises(ValueError, match="max_new_tokens"):
        backbone.generate(FRONT, prompt, max_length=20)
    with pytest.raises(ValueError, match="sets \\['encoder_outputs'\\] itself"):
        backbone.generate(FRONT, prompt, encoder_outputs=torch.ones(1, 1))


def test_a_speech_models_generation_carries_offsets_on_and_may_begin_behind_virtual_tokens() -> None:
    backbone = backbone_of("whisper")
    tokens, offset = virtual_tokens(backbone).detach(), virtual_tokens(backbone, length=5, seed=2).detach()
    rows = [front(), front(1, 20), row(1, 20, 21, -1, -2, -3, -4, -5), row(7)]
    prompt = PromptOutput(tokens=tokens, offset=offset)
    found = backbone.generate(rows, prompt, max_new_tokens=6, do_sample=False, eos_token_id=699)
    assert found == [naive.greedy(backbone.model, r, tokens[0], 6, start=(), offset=offset[0]) for r in rows]


def test_a_row_without_sound_is_an_error_in_a_speech_model() -> None:
    backbone = backbone_of("whisper")
    with pytest.raises(ValueError, match="a row has no sound"):
        backbone.score([EncodedRow((1,), ((5,),))], PromptOutput())


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_what_is_added_to_a_word_whatever_its_place_equals_plain_concatenation(
    architecture: str, layout: str
) -> None:
    backbone, rows = backbone_of(architecture), LAYOUTS[layout]
    tokens, network = virtual_tokens(backbone), virtual_tokens(backbone, length=48, seed=3)

    def shift(words: Tensor) -> Tensor:
        return (words @ network[0]).relu()

    found = scored(backbone, rows, PromptOutput(tokens=tokens, token_offset=(shift,)))
    expected = torch.cat([
        naive.target_log_likelihood(
            backbone.model, row, target, tokens[0], token_offset=shift, start=START[architecture]
        )
        for row in rows
        for target in row.targets
    ])  # fmt: skip
    assert_same(found, expected, [tokens, network])


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_the_model_is_left_as_it_was(architecture: str) -> None:
    backbone = backbone_of(architecture)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    config = backbone.model.config.to_dict()
    tokens = virtual_tokens(backbone)
    scored(backbone, FRONT, PromptOutput(tokens=tokens)).sum().backward()
    backbone.generate(FRONT, PromptOutput(tokens=tokens.detach()), max_new_tokens=3)
    assert backbone.model.config._attn_implementation == "sdpa"
    assert backbone.model.config.to_dict() == config
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    assert not any("forward" in vars(module) for module in backbone.model.modules())


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_the_spec_states_the_table_as_the_encoder_embeds_it(architecture: str) -> None:
    backbone = backbone_of(architecture)
    ids = torch.tensor([5, 9])
    inside = backbone.model.get_encoder().get_input_embeddings()(ids)
    torch.testing.assert_close(backbone.spec.embed(ids), inside.float())
    scale = 48**0.5 if architecture == "bart" else 1
    torch.testing.assert_close(inside, backbone.table[ids] * scale)
