"""A decoder read as a prefix LM: context both ways, answers one way, equal to a mask written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from softprompt import PrefixTuning, PromptTuning, TextClassification, fit, load, load_backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.binding import bind
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import BuildContext
from softprompt.search import candidate_losses
from softprompt.search.scoring import substituted
from softprompt.tasks.room import Room
from tests.naive import prefix_lm as naive
from tests.search.problems import BEHIND, FRONT, PARTED
from tests.tiny.language import WINDOW, Architecture, tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import ROWS, TASK

WINDOWS: dict[Architecture, int | None] = {"llama": None, "qwen3": None, "gpt2": None, "mistral": WINDOW}
LABELS = ((60, 61), (60, 62), (63,))
BATCH = [
    EncodedRow((-1, -2, 20, 21, 22), LABELS),
    EncodedRow((-1, -2, 20, 25), ((70, 71, 72),)),  # a single target must not see itself
    EncodedRow((30, -2, 31, -1, *range(40, 48)), LABELS),
]


def prefix_lm(architecture: Architecture = "llama") -> CausalBackbone:
    model = tiny_causal_lm(architecture, dtype=torch.float64).requires_grad_(False)
    return CausalBackbone(model, tiny_tokenizer(), prefix_lm=True)


def virtual_tokens(backbone: CausalBackbone) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 2, backbone.spec.width, dtype=torch.float64, generator=generator)
    return (tokens * backbone.spec.embedding_std).requires_grad_()


@pytest.mark.parametrize("architecture", WINDOWS)
def test_a_batch_equals_one_row_at_a_time(architecture: Architecture) -> None:
    backbone, window = prefix_lm(architecture), WINDOWS[architecture]
    tokens = virtual_tokens(backbone)
    found = backbone.score(BATCH, PromptOutput(tokens=tokens)).token_log_likelihoods()
    expected = torch.cat([
        naive.target_log_likelihood(backbone.model, row, target, tokens[0], window)
        for row in BATCH
        for target in row.targets
    ])  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, len(expected), dtype=torch.float64)
    (ours,) = torch.autograd.grad((found * weights).sum(), tokens)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10 * theirs.abs().max().item())


def assert_same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.linspace(-1, 1, found.numel(), dtype=torch.float64).view_as(found)
    for a, b in zip(
        *(torch.autograd.grad((x * weights).sum(), leaves) for x in (found, expected)), strict=True
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * b.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["offset", "token_offset", "prefix", "several prompts"])
def test_every_kind_of_prompt_equals_one_row_at_a_time(kind: str, architecture: Architecture) -> None:
    backbone = prefix_lm(architecture)
    generator = torch.Generator().manual_seed(2)

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(shape, dtype=torch.float64, generator=generator) * 0.5).requires_grad_()

    tokens, rows = virtual_tokens(backbone), BATCH
    given: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    leaves = [tokens]
    if kind == "offset":
        leaves.append(leaf(1, 6, backbone.spec.width))
        given, beside = {"offset": leaves[1]}, {"offset": leaves[1][0]}
    elif kind == "token_offset":
        leaves.append(leaf(backbone.spec.width, backbone.spec.width))
        given = {"token_offset": (lambda words: words @ leaves[1],)}
        beside = {"token_offset": given["token_offset"][0]}
    elif kind == "prefix":
        prefix = tuple((leaf(1, h, 3, size), leaf(1, h, 3, size)) for h, size in backbone.spec.key_values)
        rows = [replace(row, context=tuple(80 - a if a < 0 else a for a in row.context)) for row in BATCH]
        given, beside = {"prefix": prefix}, {"prefix": prefix}
        leaves = [part for pair in prefix for part in pair]
    else:
        leaves = [leaf(2, 3, backbone.spec.width)]
        tokens = leaves[0]
        given = {"lengths": torch.tensor([2, 3])}
        rows = [
            *BATCH,
            EncodedRow((-1, 20, -2, -3, 21), LABELS, prompt=1),
            EncodedRow((-3, 9), LABELS, prompt=1),
        ]
    prompt = PromptOutput(tokens=None if kind == "prefix" else tokens, **given)
    expected = torch.cat([
        naive.target_log_likelihood(backbone.model, row, target, tokens[row.prompt], **beside)
        for row in rows
        for target in row.targets
    ])  # fmt: skip
    assert_same(backbone.score(rows, prompt).token_log_likelihoods(), expected, leaves)


def test_heads_read_states_that_saw_the_whole_context() -> None:
    backbone = prefix_lm()
    tokens = virtual_tokens(backbone)
    rows = [replace(row, targets=(), read=(0, len(row.context) - 1)) for row in BATCH]
    expected = torch.cat([naive.states(backbone.model, row, tokens[0]) for row in rows])
    assert_same(backbone.states(rows, PromptOutput(tokens=tokens)), expected, [tokens])


def test_a_prefix_starts_as_what_the_decoder_keeps_of_a_text() -> None:
    backbone = prefix_lm()
    ids = backbone.spec.tokenize("film good dog")
    method = PrefixTuning(length=len(ids), init="text", init_text="film good dog", reparametrize=False)
    prefix = method.build(BuildContext(backbone.spec)).double()().prefix
    kept = DynamicCache(config=backbone.model.config)
    backbone.model(torch.tensor([ids]), past_key_values=kept)
    assert prefix is not None
    for (key, value), layer in zip(prefix, kept.layers, strict=True):
        torch.testing.assert_close((key, value), (layer.keys, layer.values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task", [FRONT, BEHIND, PARTED], ids=["front", "behind", "parted"])
def test_candidates_of_a_search_have_the_losses_of_each_written_into_each_row(
    task: TextClassification,
) -> None:
    backbone = prefix_lm()
    encoder = bind(backbone, task, Room(length=2))
    rows = [encoder.encode(row) for row in ROWS[:4]]
    candidates = torch.tensor([[40, 41], [42, 43], [44, 45]])
    none = torch.zeros(0, backbone.spec.width)
    expected = []
    for ids in candidates.tolist():
        written = [replace(row, context=substituted(row.context, ids)) for row in rows]
        scores = torch.stack([
            torch.stack([naive.target_log_likelihood(backbone.model, row, t, none).sum() for t in row.targets])
            for row in written
        ])  # fmt: skip
        gold = torch.tensor([row.gold for row in rows])
        expected.append(functional.cross_entropy(scores, gold))
    found = candidate_losses(backbone, encoder, rows, candidates)
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-10, atol=0)


def test_it_is_not_the_causal_model() -> None:
    backbone = prefix_lm()
    causal = CausalBackbone(backbone.model, backbone.tokenizer)
    prompt = PromptOutput(tokens=virtual_tokens(backbone))
    a, b = (b.score(BATCH, prompt).token_log_likelihoods() for b in (backbone, causal))
    assert (a - b).abs().min() > 1e-6


def test_settings_and_kept_prompts_change_nothing() -> None:
    backbone = prefix_lm()
    prompt = PromptOutput(tokens=virtual_tokens(backbone))
    expected = backbone.score(BATCH, prompt).logits
    saving = backbone.with_settings(gradient_checkpointing=True)
    torch.testing.assert_close(saving.score(BATCH, prompt).logits, expected, rtol=1e-10, atol=1e-10)
    kept = backbone.compile(BATCH, prompt)
    torch.testing.assert_close(backbone.score(BATCH, kept).logits, expected, rtol=1e-10, atol=1e-10)


def test_greedy_generation_picks_what_scores_best() -> None:
    backbone = prefix_lm()
    prompt = PromptOutput(tokens=virtual_tokens(backbone).detach())
    rows = [replace(row, targets=()) for row in BATCH]
    written = backbone.generate(rows, prompt, max_new_tokens=3, do_sample=False, eos_token_id=None)
    for row, answer in zip(rows, written, strict=True):
        for n in range(3):
            so_far = tuple(answer[:n])
            scored = backbone.score([replace(row, targets=((*so_far, 0),))], prompt)
            assert scored.logits[scored.position[-1]].argmax() == answer[n]


def test_a_saved_prompt_is_loaded_as_it_was_trained(tmp_path: Path) -> None:
    backbone = load_backbone(tiny_causal_lm("llama"), tokenizer=tiny_tokenizer(), prefix_lm=True)
    tuned = fit(backbone, TASK, PromptTuning(length=3), ROWS, steps=2, progress=False)
    tuned.save(tmp_path / "prompt")
    again = load(tmp_path / "prompt", backbone)
    text = ROWS[0]["text"]
    assert again.predict([text]) == tuned.predict([text])
    with pytest.raises(ValueError, match="family"):
        load(tmp_path / "prompt", load_backbone(tiny_causal_lm("llama"), tokenizer=tiny_tokenizer()))
    with pytest.raises(ValueError, match="PEFT knows causal"):
        tuned.export_peft(tmp_path / "peft")


def test_what_cannot_be_a_prefix_lm_says_so() -> None:
    with pytest.raises(ValueError, match="only a decoder can be read as a prefix LM"):
        load_backbone(tiny_seq2seq("t5"), tokenizer=tiny_tokenizer(), prefix_lm=True)
    padded = CausalBackbone(tiny_causal_lm("llama"), tiny_tokenizer(), packed=False, prefix_lm=True)
    with pytest.raises(ValueError, match="its attention cannot be reached"):
        padded.score(BATCH, PromptOutput(tokens=torch.zeros(1, 2, padded.spec.width)))
