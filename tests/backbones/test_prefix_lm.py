"""A decoder read as a prefix LM: context both ways, answers one way, equal to a mask written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softprompt import PromptTuning, fit, load, load_backbone
from softprompt.backbones.causal import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import prefix_lm as naive
from tests.tiny import WINDOW, Architecture, tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from tests.tiny_task import ROWS, TASK

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
