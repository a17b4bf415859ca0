"""Prompts among text and images equal the plain model, one row at a time, whatever the class."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

import softprompt as sp
from softprompt.backbones.image_text import ImageTextBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import image_text as naive
from tests.tiny.image_text import KINDS, WIDTH, noise, tiny_image_text_backbone

SHARING = [kind for kind, about in KINDS.items() if about.group == "A"]
WORDS = (20, 31, 42, 53, 64, 75)


@functools.cache
def backbone_of(kind: str) -> ImageTextBackbone:
    return tiny_image_text_backbone(kind)


def rows_of(kind: str) -> list[EncodedRow]:
    """Rows with two images, one, the same one again, and none; virtual tokens in front, between and behind."""
    reader = backbone_of(kind).reader
    first, second = reader(noise(0)), reader(noise(1, 64, 30))
    a, b, c, d, e, f = WORDS
    targets = ((a, b), (a, d, e))
    return [
        EncodedRow((-1, a, *first.tokens, -2, *second.tokens, b, -3), targets, pictures=(first, second)),
        EncodedRow((*first.tokens, -1, -2, -3, c), ((b, a),), pictures=(first,)),
        EncodedRow((*first.tokens, -1, -2, -3, d, e, f), ((b, a),), pictures=(first,), prompt=1),
        EncodedRow((*first.tokens, -1, -2, -3, d, e, a), ((f,),), pictures=(first,)),
        EncodedRow((-1, -2, a, b, c, -3, d), targets, prompt=1),
    ]


def prompt_of(**changes: object) -> PromptOutput:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(2, 3, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    return replace(PromptOutput(tokens=tokens), **changes)  # type: ignore[arg-type]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_gradients_are_those_of_the_plain_model_row_by_row(kind: str) -> None:
    backbone, rows, prompt = backbone_of(kind), rows_of(kind), prompt_of()
    expected = naive.likelihoods(backbone, rows, prompt)
    assert prompt.tokens is not None
    [wanted] = torch.autograd.grad(expected.sum(), prompt.tokens)
    for _ in range(2):  # images computed, then cached
        found = backbone.score(rows, prompt).token_log_likelihoods()
        close(found, expected)
        [gradient] = torch.autograd.grad(found.sum(), prompt.tokens)
        close(gradient, wanted)
    assert backbone.packed == (KINDS[kind].group == "A")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_generated_batches_are_the_rows_alone_and_follow_the_models_own_logits(kind: str) -> None:
    backbone, rows, prompt = backbone_of(kind), rows_of(kind), prompt_of()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    found = backbone.generate(rows, prompt, **options)
    assert found == [backbone.generate([row], prompt, **options)[0] for row in rows]
    assert found[:1] + found[-1:] == [naive.greedy(backbone, row, prompt, 4) for row in (rows[0], rows[-1])]


@pytest.mark.parametrize("kind", KINDS)
def test_virtual_tokens_that_copy_words_are_these_words(kind: str) -> None:
    backbone, rows = backbone_of(kind), rows_of(kind)
    words = backbone.model.get_input_embeddings()(torch.tensor(WORDS[:3]))
    prompt = PromptOutput(tokens=words.expand(2, -1, -1))
    written = [
        replace(row, prompt=0, context=tuple(WORDS[-1 - atom] if atom < 0 else atom for atom in row.context))
        for row in rows
    ]
    close(
        backbone.score(rows, prompt).token_log_likelihoods(),
        backbone.score(written, PromptOutput()).token_log_likelihoods(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_added_to_text_only_and_images_do_not_count(kind: str) -> None:
    backbone, rows = backbone_of(kind), rows_of(kind)
    offset = torch.randn(2, 4, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    prompt = prompt_of(offset=offset)
    close(backbone.score(rows, prompt).token_log_likelihoods(), naive.likelihoods(backbone, rows, prompt))
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert backbone.generate(rows[:1], prompt, **options) == [naive.greedy(backbone, rows[0], prompt, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARING)
def test_prefixes_stand_in_front_of_images(kind: str) -> None:
    backbone, rows = backbone_of(kind), rows_of(kind)
    generator = torch.Generator().manual_seed(7)
    prefix = tuple(
        tuple(torch.randn(2, *(h, 3, size), generator=generator, dtype=torch.float64) for _ in range(2))
        for h, size in backbone.spec.key_values
    )
    prompt = prompt_of(prefix=prefix)
    close(backbone.score(rows, prompt).token_log_likelihoods(), naive.likelihoods(backbone, rows, prompt))
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    assert backbone.generate(rows[:1], prompt, **options) == [naive.greedy(backbone, rows[0], prompt, 3)]


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl"])
def test_compiled_prompts_answer_as_prompts_do(kind: str) -> None:
    backbone, prompt = backbone_of(kind), prompt_of()
    first = backbone.reader(noise(0))
    rows = [
        EncodedRow((-1, -2, -3, 20, *first.tokens, *WORDS[:n]), ((42,),), pictures=(first,)) for n in (1, 3)
    ]
    others = [replace(row, pictures=(backbone.reader(noise(n)),)) for n, row in enumerate(rows)]
    with torch.no_grad():
        compiled = backbone.compile(rows, prompt)
        for batch in (rows, others):
            close(
                backbone.score(batch, compiled).token_log_likelihoods(),
                backbone.score(batch, prompt).token_log_likelihoods(),
            )


def test_states_are_those_of_the_whole_model() -> None:
    for kind in ("llava", "gemma3"):
        backbone, prompt = backbone_of(kind), prompt_of()
        rows = [replace(row, targets=(), read=(len(row.context) - 1,)) for row in rows_of(kind)]
        found = backbone.states(rows, prompt)
        scored = backbone.score([replace(row, targets=((5,),)) for row in rows], prompt)
        head = backbone.model.get_output_embeddings()
        assert head is not None
        close(head(found), scored.logits[scored.position])


def test_an_image_is_computed_once_and_run_once_for_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_image_text_backbone("llava")
    assert backbone.decoder is not None
    calls: list[int] = []
    tower = backbone.model.base_model.get_image_features

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return tower(*args, **kwargs)

    monkeypatch.setattr(backbone.model.base_model, "get_image_features", counted)
    picture = backbone.reader(noise(9))
    rows = [EncodedRow((-1, *picture.tokens, word), ((5,),), pictures=(picture,)) for word in WORDS]
    for _ in range(2):
        backbone.score(rows, prompt_of())
    assert len(calls) == 1
    changed, joined = backbone._with_images(rows, prompt_of())
    assert joined.count == 1  # one prompt for all questions: the virtual tokens and the image
    assert {row.prompt for row in changed} == {0}


def test_rows_whose_placeholders_are_not_those_of_their_images_are_refused() -> None:
    backbone = backbone_of("llava")
    picture = backbone.reader(noise(0))
    row = EncodedRow((20, *picture.tokens, *picture.tokens, 21), ((5,),), pictures=(picture,))
    with pytest.raises(ValueError, match=r"a row has 8 placeholders and its 1 images take 4"):
        backbone.score([row], PromptOutput())


def test_videos_are_refused_with_the_reason() -> None:
    reader = backbone_of("llava").reader
    for video in ("cat.mp4", noise(0)[None].repeat(4, 0)):
        with pytest.raises(ValueError, match="is a video, and softprompt reads images only"):
            reader(video)


def test_methods_of_layers_change_the_decoder_alone_and_keep_the_vectors_of_images() -> None:
    backbone = tiny_image_text_backbone("llava")
    picture = backbone.reader(noise(0))
    known = backbone.features(picture)
    generator = torch.Generator().manual_seed(0)
    for name in ("lora", "adapter"):
        changed = sp.methods()[name]().prepare(backbone, generator)
        assert isinstance(changed, ImageTextBackbone)
        trained = [n for n, p in changed.model.named_parameters() if p.requires_grad]
        assert trained
        assert all(n.startswith("model.language_model.") for n in trained)
        assert changed.features._kept is backbone.features._kept
        row = EncodedRow((20, *picture.tokens, 21), ((22,),), pictures=(picture,))
        changed.score([row], PromptOutput()).token_log_likelihoods().sum().backward()
        assert all(p.grad is not None for p in changed.model.parameters() if p.requires_grad)
    assert (known.vectors == backbone.features(picture).vectors).all()


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_full_tuning_reaches_the_tower_and_the_connector(kind: str) -> None:
    changed = sp.FullTuning().prepare(tiny_image_text_backbone(kind), torch.Generator().manual_seed(0))
    assert isinstance(changed, ImageTextBackbone)
    assert not changed.features.is_frozen
    picture = changed.reader(noise(0))
    row = EncodedRow((20, *picture.tokens, 21), ((22,),), pictures=(picture,))
    changed.score([row], PromptOutput()).token_log_likelihoods().sum().backward()
    for name, parameter in changed.model.named_parameters():
        if "multi_modal_projector" in name:
            assert parameter.grad is not None
            assert parameter.grad.any()
