"""Where virtual tokens start, against the embedding table they join."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from softprompt import SoftpromptWarning
from softprompt.backbones.base import BackboneSpec
from softprompt.backbones.vocabulary import alphabet_ids, special_ids
from softprompt.prompts import initialization as initial
from tests.tiny.language import ARCHITECTURES, Architecture, tiny_tokenizer
from tests.tiny.task import tiny_backbone


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_of(table: Tensor, special_ids: frozenset[int] = frozenset()) -> BackboneSpec:
    """The facts of a model with this embedding table, (V, d)."""
    embedding = nn.Embedding.from_pretrained(table)
    return replace(
        tiny_backbone().spec,
        width=table.shape[1],
        vocabulary=table.shape[0],
        embedding_std=table.std().item(),
        embed=lambda ids: embedding(ids).clone(),
        special_ids=special_ids,
    )


def table_of(architecture: Architecture) -> tuple[BackboneSpec, Tensor]:
    """The facts of a tiny model, and its table as the model uses it, (V, d)."""
    spec = tiny_backbone(architecture, dtype=torch.float32).spec
    return spec, spec.embed(torch.arange(spec.vocabulary))


def test_uniform_noise_has_the_tables_standard_deviation() -> None:
    spec = spec_of(torch.randn(500, 2048, generator=seeded(1)) * 0.02)
    tokens = initial.uniform(spec, 50, seeded())
    assert tokens.shape == (50, 2048)
    assert tokens.std().item() == pytest.approx(spec.embedding_std, rel=0.05)
    assert tokens.mean().item() == pytest.approx(0, abs=0.05 * spec.embedding_std)
    assert tokens.abs().max().item() <= spec.embedding_std * math.sqrt(3)
    assert tokens.abs().max().item() >= 0.99 * spec.embedding_std * math.sqrt(3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_scale_is_that_of_the_table_as_the_model_uses_it(architecture: Architecture) -> None:
    spec, table = table_of(architecture)
    assert spec.embedding_std == pytest.approx(table.std().item(), rel=1e-5)
    if architecture == "gemma3_text":  # it multiplies its table by sqrt(d)
        raw = tiny_backbone("gemma3_text", dtype=torch.float32).model.get_input_embeddings().weight
        assert spec.embedding_std == pytest.approx(raw.std().item() * math.sqrt(48), rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_words_are_distinct_rows_of_the_table_and_no_special_ones(architecture: Architecture) -> None:
    spec, table = table_of(architecture)
    tokens = initial.sampled_vocabulary(spec, 40, seeded())
    matches = (tokens[:, None] == table[None]).all(dim=-1)  # (P, V)
    assert matches.any(dim=1).all()
    ids = matches.int().argmax(dim=1).tolist()
    assert len(set(ids)) == 40
    assert not set(ids) & spec.special_ids
    assert spec.special_ids == {0, 1, 2, 3}


def test_sampled_words_are_among_the_most_common() -> None:
    table = torch.arange(6000, dtype=torch.float32)[:, None].expand(-1, 2).contiguous()  # row i holds i
    special = frozenset({0, 7, 5999})
    tokens = initial.sampled_vocabulary(spec_of(table, special), initial.COMMON_TOKENS, seeded())
    expected = [i for i in range(6000) if i not in special][: initial.COMMON_TOKENS]
    assert sorted(tokens[:, 0].int().tolist()) == expected


def test_places_kept_free_and_a_wordpiece_alphabet_are_no_common_words() -> None:
    pieces = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "a", "##b", "\u30bb", "the", "##ing", "of"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]")),
        pad_token="[PAD]",
        unk_token="[UNK]",
    )
    assert special_ids(tokenizer) == {0, 1, 2, 3}
    assert alphabet_ids(tokenizer) == {4, 5, 6}
    assert alphabet_ids(tiny_tokenizer()) == frozenset()  # byte-level: its 256 bytes are words as others
    spec = replace(spec_of(torch.randn(10, 4), special_ids(tokenizer)), alphabet=alphabet_ids(tokenizer))
    assert initial.common_words(spec) == [
        7,
        8,
        9,
        4,
        5,
        6,
    ]  # the alphabet only where there is not enough else


def test_more_sampled_words_than_the_vocabulary_has_are_an_error() -> None:
    spec = spec_of(torch.randn(10, 4), frozenset({0, 1}))
    assert len(initial.sampled_vocabulary(spec, 8, seeded())) == 8
    with pytest.raises(
        ValueError, match="9 virtual tokens cannot start as distinct words: the vocabulary offers 8"
    ):
        initial.sampled_vocabulary(spec, 9, seeded())


def test_a_text_is_repeated_until_the_prompt_is_full() -> None:
    spec, table = table_of("llama")
    ids = spec.tokenize("good film or bad")
    assert len(ids) == 4
    assert torch.equal(initial.from_text(spec, 10, "good film or bad"), table[torch.tensor((ids * 3)[:10])])


def test_a_text_that_is_too_long_is_cut_with_a_warning() -> None:
    spec, table = table_of("llama")
    ids = spec.tokenize("good film or bad")
    with pytest.warns(
        SoftpromptWarning, match="the initial text has 4 tokens, the prompt 3: the rest is left out"
    ):
        tokens = initial.from_text(spec, 3, "good film or bad")
    assert torch.equal(tokens, table[torch.tensor(ids[:3])])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        initial.from_text(spec, 4, "good film or bad")


def test_a_text_without_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="the initial text '' has no tokens"):
        initial.from_text(table_of("llama")[0], 3, "")


def test_a_label_word_of_several_pieces_starts_as_their_mean() -> None:
    spec, table = table_of("llama")
    labels = {"neg": (" bad", " unspeakable"), "pos": (" good",)}
    pieces = [spec.tokenize(word) for word in (" bad", " unspeakable", " good")]
    assert [len(p) == 1 for p in pieces] == [True, False, True]
    tokens = initial.from_labels(spec, 6, labels, seeded())
    for row, ids in zip(tokens, pieces, strict=False):
        assert_close(row, table[ids].mean(dim=0))
    rest = (tokens[3:, None] == table[None]).all(dim=-1).any(dim=1)
    assert rest.all()
    assert torch.equal(tokens[3:], initial.sampled_vocabulary(spec, 3, seeded()))


def test_a_prompt_shorter_than_the_labels_starts_with_the_first_of_them() -> None:
    spec, table = table_of("llama")
    labels = {"neg": (" bad",), "pos": (" good",)}
    assert torch.equal(initial.from_labels(spec, 1, labels, seeded())[0], table[spec.tokenize(" bad")[0]])


def test_labels_are_needed_to_start_from_labels() -> None:
    with pytest.raises(ValueError, match="the task has no labels to start from: choose another init"):
        initial.from_labels(table_of("llama")[0], 3, {}, seeded())


def test_another_prompt_is_repeated_or_cut_and_not_shared() -> None:
    spec, _ = table_of("llama")
    prompt = torch.randn(3, 48)
    longer = initial.from_tokens(spec, 5, prompt)
    assert torch.equal(longer, torch.cat([prompt, prompt[:2]]))
    assert torch.equal(initial.from_tokens(spec, 2, prompt), prompt[:2])
    before = prompt.clone()
    longer.zero_()
    initial.from_tokens(spec, 3, prompt).zero_()
    assert torch.equal(prompt, before)


@pytest.mark.parametrize("shape", [(3, 32), (48,)])
def test_another_prompt_must_have_the_backbones_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"the initial prompt has shape \(.*\), this backbone needs \(n, 48\)"
    ):
        initial.from_tokens(table_of("llama")[0], 3, torch.zeros(shape))


def test_starting_changes_neither_the_table_nor_the_global_generator() -> None:
    backbone = tiny_backbone()
    before = backbone.model.get_input_embeddings().weight.clone()
    state = torch.get_rng_state()
    for tokens in (
        initial.uniform(backbone.spec, 4, seeded()),
        initial.sampled_vocabulary(backbone.spec, 4, seeded()),
        initial.from_text(backbone.spec, 4, "film"),
        initial.from_labels(backbone.spec, 4, {"a": (" good",)}, seeded()),
    ):
        assert (tokens.dtype, tuple(tokens.shape)) == (torch.float32, (4, 48))
        assert not tokens.requires_grad
        tokens.zero_()
    assert torch.equal(backbone.model.get_input_embeddings().weight, before)
    assert torch.equal(torch.get_rng_state(), state)
