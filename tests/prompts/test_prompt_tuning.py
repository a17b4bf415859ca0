"""Prompt Tuning's settings, its start and its module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import ManualPrompt, PromptFileError, PromptTuning, TextGeneration, ZeroShot, fit
from softprompt.exchange import write_peft
from softprompt.prompts.base import BuildContext
from softprompt.prompts.prompt_tuning import VirtualTokens
from tests.tiny.task import ROWS, TASK, tiny_backbone

INITS: list[dict[str, Any]] = [
    {"init": "auto"},
    {"init": "vocab"},
    {"init": "uniform"},
    {"init": "text", "init_text": "is this good or bad"},
    {"init": "labels"},
]


def start(seed: int = 0, **settings: Any) -> torch.Tensor:
    """The virtual tokens that a method starts with, (P, d)."""
    context = BuildContext(
        spec=tiny_backbone().spec, labels=TASK.label_words, generator=torch.Generator().manual_seed(seed)
    )
    return PromptTuning(**settings).build(context).state_dict()["tokens"]


@pytest.mark.parametrize("init", INITS, ids=lambda init: init["init"])
def test_the_same_seed_starts_the_same_prompt(init: dict[str, Any]) -> None:
    assert torch.equal(start(length=6, **init), start(length=6, **init))
    drawn = init["init"] != "text"
    assert torch.equal(start(length=6, **init), start(1, length=6, **init)) != drawn


def test_by_default_a_task_with_labels_starts_from_them_and_another_from_common_words() -> None:
    assert torch.equal(start(length=6), start(length=6, init="labels"))
    for init in ("auto", "vocab"):
        context = BuildContext(spec=tiny_backbone().spec, generator=torch.Generator().manual_seed(0))
        tokens = PromptTuning(length=6, init=init).build(context).state_dict()["tokens"]
        assert torch.equal(tokens, start(length=6, init="vocab"))


@pytest.mark.parametrize("init", INITS, ids=lambda init: init["init"])
@pytest.mark.parametrize("length", [1, 5])
def test_a_module_has_p_float32_tokens(init: dict[str, Any], length: int) -> None:
    if init["init"] == "text":
        init = {**init, "init_text": "film"}
    context = BuildContext(spec=tiny_backbone().spec, labels=TASK.label_words)
    module = PromptTuning(length=length, **init).build(context)
    output = module()
    assert module.length == length
    assert output.tokens is not None
    assert (tuple(output.tokens.shape), output.tokens.dtype) == ((1, length, 48), torch.float32)
    assert output.prefix is None
    assert output.offset is None
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["tokens"]
    assert module.bake() is module


def test_a_prompt_of_ours_or_of_peft_is_a_start(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, PromptTuning(length=3), ROWS, steps=1, progress=False)
    tokens = tuned.module.state_dict()["tokens"]
    ours, theirs = tuned.save(tmp_path / "ours"), tuned.export_peft(tmp_path / "theirs")
    for folder in (ours, theirs):
        assert torch.equal(start(length=5, init="prompt", init_prompt=folder), tokens[[0, 1, 2, 0, 1]])
    method = PromptTuning(length=3, init="prompt", init_prompt=ours)
    again = fit(backbone, TASK, method, ROWS, steps=1, learning_rate=1e-12, progress=False)
    torch.testing.assert_close(again.module.state_dict()["tokens"], tokens)


def test_a_start_of_another_width_is_an_error(tmp_path: Path) -> None:
    write_peft(tmp_path / "p", torch.zeros(3, 32), base_model_name=None, num_layers=2, num_attention_heads=4)
    with pytest.raises(ValueError, match=r"has shape \(3, 32\), this backbone needs \(n, 48\)"):
        start(init="prompt", init_prompt=tmp_path / "p")


def test_a_folder_without_a_prompt_is_no_start(tmp_path: Path) -> None:
    with pytest.raises(PromptFileError, match="does not exist"):
        start(init="prompt", init_prompt=tmp_path / "nowhere")


def test_a_prompt_of_no_words_is_no_start(tmp_path: Path) -> None:
    folder = fit(tiny_backbone(), TASK, ZeroShot(), ROWS, progress=False).save(tmp_path / "p")
    with pytest.raises(PromptFileError, match="a zero-shot prompt has no virtual tokens to start from"):
        start(init="prompt", init_prompt=folder)


def test_a_manual_prompt_is_a_start(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    folder = fit(backbone, TASK, ManualPrompt(text="good film"), ROWS, progress=False).save(tmp_path / "p")
    assert torch.equal(
        start(length=2, init="prompt", init_prompt=folder),
        start(length=2, init="text", init_text="good film"),
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length"),
        ({"length": -3}, "length"),
        ({"init": "noise"}, "'auto', 'vocab', 'uniform', 'text', 'labels' or 'prompt'"),
        ({"init": "text"}, 'init_text and init="text" go together; got init="text", init_text=None'),
        (
            {"init_text": "film"},
            'init_text and init="text" go together; got init="auto", init_text=\'film\'',
        ),
        ({"init": "prompt"}, 'init_prompt and init="prompt" go together'),
        ({"lenght": 3}, "lenght"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
        PromptTuning(**settings)
    assert said in str(caught.value)


def test_starting_from_labels_needs_a_task_with_labels() -> None:
    task = TextGeneration("{text}", target=" {label}")
    with pytest.raises(ValueError, match="the task has no labels to start from: choose another init"):
        fit(tiny_backbone(), task, PromptTuning(length=3, init="labels"), ROWS, steps=1, progress=False)


def test_the_default_learning_rate_follows_the_scale_of_the_table() -> None:
    spec = tiny_backbone().spec
    assert PromptTuning().learning_rate(spec) == pytest.approx(0.1 * spec.embedding_std)


def test_a_module_that_is_restored_is_the_same() -> None:
    tokens = torch.randn(3, 48)
    module = PromptTuning(length=3).restore(tiny_backbone().spec, VirtualTokens(tokens).state_dict())
    assert torch.equal(module.state_dict()["tokens"], tokens)
