"""Rows of several tasks in one batch."""

from __future__ import annotations

import pytest
import torch

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import TargetLogits
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tolerances import assert_equal_up_to_rounding

ROWS = [{"text": "the film is great", "label": "good"}, {"text": "the plot is bad", "label": "bad"}] * 2


def tuned_prompts(backbone: CausalBackbone) -> list[sp.TunedPrompt]:
    mood = sp.TextClassification("{text} feeling", labels={"good": " happy", "bad": [" sad", " very sad"]})
    calm = sp.TextClassification(
        "{soft:2} is {text} {soft} calm", labels={"good": " yes", "bad": " no not"}, calibrated=True
    )
    story = sp.TextGeneration("{text}:", target=" {label}", max_new_tokens=5)
    methods = (sp.PromptTuning(length=6), sp.PromptTuning(length=3), sp.PromptTuning(length=4), sp.ZeroShot())
    tasks = (mood, calm, story, mood)
    return [
        sp.fit(backbone, task, method, ROWS, steps=2, progress=False, learning_rate=0.5, warmup=0, seed=seed)
        for seed, (task, method) in enumerate(zip(tasks, methods, strict=True))
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_a_mixed_batch_gives_each_row_what_its_own_prompt_gives_it_alone(architecture: str) -> None:
    backbone = CausalBackbone(tiny_causal_lm(architecture).requires_grad_(False), tiny_tokenizer())  # type: ignore[arg-type]
    prompts = tuned_prompts(backbone)
    texts = [
        "a good day",
        "the river and the bird",
        "a dog",
        "she can write",
        "food",
        "the old house is very big",
        "no",
        "it is",
    ]
    which = [0, 1, 2, 0, 1, 2, 3, 0]
    together = sp.MixedPrompts(prompts).predict(texts, which, batch_size=5)
    for text, n, answer in zip(texts, which, together, strict=True):
        (alone,) = prompts[n].predict([text])
        assert_equal_up_to_rounding(answer, alone)


def test_an_unknown_prompt_is_an_error_never_a_silent_default() -> None:
    backbone = CausalBackbone(tiny_causal_lm("llama").requires_grad_(False), tiny_tokenizer())
    task = sp.TextClassification("{text} feeling", labels={"good": " happy", "bad": " sad"})
    alone = sp.fit(backbone, task, sp.ZeroShot(), ROWS, progress=False)
    mixed = sp.MixedPrompts([alone])
    with pytest.raises(ValueError, match=r"unknown prompts \[1\]: there are 1"):
        mixed.predict(["a"], [1])
    with pytest.raises(ValueError, match="2 inputs and 1 prompt numbers"):
        mixed.predict(["a", "b"], [0])
    other = CausalBackbone(tiny_causal_lm("llama", seed=1).requires_grad_(False), tiny_tokenizer())
    with pytest.raises(ValueError, match="share one backbone"):
        sp.MixedPrompts([alone, sp.fit(other, task, sp.ZeroShot(), ROWS, progress=False)])


def test_part_of_scored_rows_is_what_scoring_that_part_gives() -> None:
    logits = torch.randn(4, 9)
    whole = TargetLogits(
        logits,
        torch.tensor([0, 0, 1, 2, 3]),
        torch.tensor([1, 2, 3, 4, 5]),
        torch.tensor([0, 1, 1, 2, 3]),
        (2, 1, 1),
    )
    part = whole.of_rows([2, 0])
    sums, lengths = whole.log_likelihoods()
    found, found_lengths = part.log_likelihoods()
    torch.testing.assert_close(found, sums[[3, 0, 1]])
    assert found_lengths.tolist() == lengths[[3, 0, 1]].tolist()
    assert part.counts == (1, 2)
