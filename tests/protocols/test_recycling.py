"""Prompts converted to another model by the embedding tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertTokenizer, LlamaConfig, LlamaForCausalLM

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.protocols import recycling, shared_words
from tests.naive import recycling as naive
from tests.tiny.language import WORDS, tiny_tokenizer
from tests.tiny.task import TASK, tiny_backbone

FEW: dict[str, Any] = {"words": 120, "skip": 10}


def other_width(width: int = 32) -> CausalBackbone:
    """A model of another width with the same tokenizer."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        initializer_range=0.2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    return CausalBackbone(model, tokenizer, name="tiny/other")


def prompt(backbone: CausalBackbone, length: int = 4) -> sp.TunedPrompt:
    tokens = torch.randn(length, backbone.spec.width) * backbone.spec.embedding_std
    return sp.TunedPrompt(
        backbone, TASK, sp.PromptTuning(length=length), VirtualTokens(tokens).requires_grad_(False)
    )


@pytest.mark.parametrize("recycler", ["linear_map", "linear_combination"])
def test_linear_recyclers_equal_the_normal_equations(recycler: str) -> None:
    source, target, tokens = (torch.randn(n, d, dtype=torch.float64) for n, d in ((40, 12), (40, 7), (3, 12)))
    found = getattr(recycling, recycler)(source, target, tokens)
    torch.testing.assert_close(
        found, getattr(naive, recycler)(source, target, tokens).float(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("recycler", ["v2v-lin", "lin-comb"])
def test_between_identical_models_a_prompt_stays_what_it_is(recycler: Any) -> None:
    source = prompt(tiny_backbone())
    ported = sp.port_prompt(source, tiny_backbone(), recycler=recycler, **FEW)
    torch.testing.assert_close(
        ported.module.state_dict()["tokens"], source.module.state_dict()["tokens"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("recycler", ["v2v-lin", "v2v-nn", "lin-comb"])
def test_a_ported_prompt_has_the_other_width_predicts_and_is_a_start(tmp_path: Path, recycler: Any) -> None:
    target = other_width()
    ported = sp.port_prompt(prompt(tiny_backbone(), 5), target, recycler=recycler, **FEW)
    assert ported.module.state_dict()["tokens"].shape == (5, 32)
    assert {answer.label for answer in ported.predict(["film", "dog"])} <= {"neg", "pos"}
    assert dict(ported.recipe) == {"ported_from": "tiny/llama", "recycler": recycler, "words": 120}
    folder = ported.save(tmp_path / "ported")
    method = sp.PromptTuning(length=5, init="prompt", init_prompt=folder)
    rows = [{"text": "film", "label": "pos"}, {"text": "dog", "label": "neg"}]
    tuned = sp.fit(target, TASK, method, rows, steps=1, learning_rate=1e-12, progress=False)
    torch.testing.assert_close(tuned.module.state_dict()["tokens"], ported.module.state_dict()["tokens"])


@pytest.mark.slow
def test_the_network_learns_a_map_of_the_tables_and_repeats_itself() -> None:
    source = 0.02 * torch.randn(1500, 6)
    target = 300 * source @ torch.randn(6, 5)
    found = recycling.network_map(source, target, source[:20], seed=1)
    unexplained = (found - target[:20]).square().mean() / target[:20].square().mean()
    assert float(unexplained) < 0.25
    assert torch.equal(found, recycling.network_map(source, target, source[:20], seed=1))
    assert not torch.equal(found, recycling.network_map(source, target, source[:20], seed=2))


def test_words_are_aligned_by_their_text_whatever_the_tokenizers_write() -> None:
    bert = BertTokenizer(
        vocab={
            piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##og", *WORDS])
        }
    )
    source, target = tiny_backbone(), other_width()
    words = CausalBackbone(target.model, bert, name="tiny/words")
    pairs = shared_words(source, words, words=1000, skip=0)
    assert len(pairs) == len(set(WORDS))
    for a, b in pairs.tolist():
        assert source.tokenizer.decode([a]) == f" {bert.convert_ids_to_tokens(b)}"


def test_words_are_taken_in_the_sources_order_after_those_skipped() -> None:
    source, target = tiny_backbone(), other_width()
    every = shared_words(source, target, words=1000, skip=0)
    assert every[:, 0].tolist() == sorted(every[:, 0].tolist())
    assert torch.equal(shared_words(source, target, words=7, skip=5), every[5:12])


def test_vocabularies_that_share_too_little_are_said() -> None:
    source, target = prompt(tiny_backbone()), other_width()
    with pytest.raises(ValueError, match=r"share \d+ whole words, and words=4000, skip=1000 leave none"):
        sp.port_prompt(source, target)
    with pytest.warns(
        sp.SoftpromptWarning, match="have 20 words for a fit of width 48: it is not determined"
    ):
        sp.port_prompt(source, target, words=20, skip=0)


@pytest.mark.parametrize("method", ["dept", "adept"])
def test_a_prompt_with_an_offset_cannot_be_ported(method: str) -> None:
    backbone = tiny_backbone()
    rows = [{"text": "film", "label": "pos"}, {"text": "dog", "label": "neg"}]
    tuned = sp.fit(backbone, TASK, sp.methods()[method](), rows, steps=1, progress=False)
    with pytest.raises(ValueError, match="offset beside its virtual tokens, which would be lost"):
        sp.port_prompt(tuned, other_width(), **FEW)
