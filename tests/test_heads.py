"""Heads: trained with the prompt, saved, resumed and mixed with it; everything else stays bit-identical."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import (
    FewShot,
    ManualPrompt,
    MixedPrompts,
    PromptFileError,
    PromptTuning,
    Regression,
    SequenceClassification,
    SpanExtraction,
    TextClassification,
    TokenClassification,
    TunedPrompt,
    ZeroShot,
    fit,
    load,
)
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.prompts.base import linear_head
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.store import load as read_folder
from softprompt.tasks.base import Task
from softprompt.training.progress import Record, Silent
from tests.naive import causal as naive
from tests.tiny.language import Architecture
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import TASK as WORDS_TASK
from tests.tiny.task import tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings(
    "ignore:(every validation|the validation error|no predicted answer|no training):softprompt.SoftpromptWarning"
)

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

ROWS: list[dict[str, Any]] = [
    {
        **row,
        "value": float(row["label"] == "pos"),
        "words": row["text"].split(),
        "tags": ["B-X" if word in ("film", "dog") else "O" for word in row["text"].split()],
        "question": "what is it",
        "context": f"look, {row['text']} here",
        "answers": {"text": [row["text"].split()[0]], "answer_start": [6]},
    }
    for row in TEXTS
]
TASKS: dict[str, Task] = {
    "sequence": SequenceClassification("{text} sentiment", labels=["neg", "pos"]),
    "mean": SequenceClassification("{text} sentiment", labels=["neg", "pos"], pooling="mean"),
    "regression": Regression("{text} sentiment"),
    "token": TokenClassification(tags=["O", "B-X"], template="{soft:2}find {soft}{words} now"),
    "span": SpanExtraction(),
}
each_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def untouched(backbone: CausalBackbone, before: dict[str, Tensor]) -> bool:
    after = backbone.model.state_dict()
    return (
        after.keys() == before.keys()
        and all(torch.equal(after[name], before[name]) for name in before)
        and all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
        and not any(module._forward_hooks for module in backbone.model.modules())
    )


def with_head(backbone: CausalBackbone, task: Task, seed: int = 1, length: int = 4) -> TunedPrompt:
    """A prompt and a head in float64 that nobody trained."""
    generator = torch.Generator().manual_seed(seed)
    module = VirtualTokens(torch.randn(length, backbone.spec.width, generator=generator)).double()
    assert task.outputs is not None
    head = linear_head(backbone.spec.width, task.outputs, generator).double()
    with torch.no_grad():
        head.weight.normal_(std=0.3, generator=generator)
    return TunedPrompt(backbone, task, PromptTuning(length=length), module, head=head)


def naive_loss(tuned: TunedPrompt, row: dict[str, Any]) -> Tensor:
    """The loss of one row, alone, nothing shared."""
    encoded = tuned.encoder.encode(row)
    tokens = tuned.module().tokens
    assert tokens is not None
    assert tuned.head is not None
    states = naive.states(tuned.backbone.model, encoded, tokens[0])
    outputs = tuned.head(states.mean(dim=0, keepdim=True) if encoded.pooled else states)
    logits = outputs.log_softmax(dim=-1)
    match tuned.task:
        case SequenceClassification():
            return -logits[0, int(encoded.answer[0])]
        case Regression():
            return (outputs[0, 0] - encoded.answer[0]) ** 2
        case TokenClassification():
            return torch.stack([-logits[i, int(tag)] for i, tag in enumerate(encoded.answer)]).mean()
        case _:
            start, end = outputs.log_softmax(dim=0).unbind(dim=1)
            return -(start[int(encoded.answer[0])] + end[int(encoded.answer[1])]) / 2


@pytest.mark.slow
@each_task
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_loss_and_gradients_are_those_of_one_row_at_a_time(task: Task, packed: bool) -> None:
    backbone = tiny_backbone("qwen3")
    if not packed:
        backbone = CausalBackbone(backbone.model, backbone.tokenizer, name="tiny", packed=False)
    tuned = with_head(backbone, task)
    rows = [tuned.encoder.encode(row) for row in ROWS[:6]]
    found = tuned.encoder.loss(tuned.model.outputs(rows), rows)
    expected = torch.stack([naive_loss(tuned, row) for row in ROWS[:6]])
    assert_close(found, expected, **CLOSE)
    assert tuned.head is not None
    leaves = [*tuned.module.parameters(), *tuned.head.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.mean(), leaves), torch.autograd.grad(expected.mean(), leaves), strict=True
    ):
        assert_close(one, other, **CLOSE)


@pytest.mark.slow
@each_task
def test_a_prediction_is_the_same_alone_in_any_batch_and_with_either_padding_side(task: Task) -> None:
    # PEFT 0.21.2 pools a padding token of decoders padded on the right, and shifts no label behind its virtual tokens.
    left, right = (with_head(tiny_backbone(padding_side=side), task) for side in ("left", "right"))
    together = left.predict(ROWS)
    assert left.predict(ROWS) == together
    assert_equal_up_to_rounding(right.predict(ROWS), together, torch.float64)
    for size in (1, 3):
        assert_equal_up_to_rounding(left.predict(ROWS, batch_size=size), together, torch.float64)


@pytest.mark.slow
@each_task
@pytest.mark.parametrize("saving", [False, True], ids=["plain", "checkpointing"])
def test_prompt_and_head_move_and_the_backbone_stays_bit_identical(task: Task, saving: bool) -> None:
    backbone = tiny_backbone("llama", dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(
        backbone,
        task,
        PromptTuning(length=4),
        ROWS,
        ROWS[:4],
        evaluate_every=1,
        gradient_checkpointing=saving,
        **SHORT,
    )
    assert untouched(backbone, before)
    assert tuned.head is not None
    assert tuned.recipe["trained_parameters"] == 4 * 48 + 49 * int(task.outputs or 0)
    last = fit(backbone, task, PromptTuning(length=4), ROWS, gradient_checkpointing=saving, **SHORT)
    still = {"steps": 1, "learning_rate": 1e-30, "head_learning_rate": 1e-30}
    start = fit(backbone, task, PromptTuning(length=4), ROWS, **(SHORT | still))
    assert last.trained().keys() == {"prompt.tokens", "head.weight", "head.bias"}
    for name, tensor in last.trained().items():
        assert tensor.dtype == torch.float32
        assert (tensor != start.trained()[name]).any(dim=-1).all(), name
    assert untouched(backbone, before)
    assert task.main_metric in tuned.metrics["validation"]


def test_checkpointing_trains_the_same_head() -> None:
    plain, saving = (
        fit(tiny_backbone(), TASKS["token"], PromptTuning(length=4), ROWS, gradient_checkpointing=on, **SHORT)
        for on in (False, True)
    )
    for name, tensor in plain.trained().items():
        assert_close(saving.trained()[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_a_label_is_learned_by_a_prompt_with_a_head(architecture: Architecture, dtype: torch.dtype) -> None:
    backbone = tiny_backbone(architecture, dtype=dtype)
    tuned = fit(
        backbone, TASKS["sequence"], PromptTuning(length=4), ROWS, ROWS, steps=40, batch_size=8, head_learning_rate=0.02,
        progress=False,
    )  # fmt: skip
    assert tuned.evaluate(ROWS)["accuracy"] > 0.9  # majority: 0.5


@pytest.mark.slow
@each_task
def test_a_loaded_head_predicts_what_the_saved_one_did(task: Task, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, task, PromptTuning(length=4), ROWS, **SHORT)
    folder = tuned.save(tmp_path / "prompt")
    assert {"prompt.tokens", "head.weight", "head.bias"} == read_folder(folder).tensors.keys()
    again = load(folder, tiny_backbone())
    assert again.task == task
    assert again.predict(ROWS) == tuned.predict(ROWS)
    assert not any(p.requires_grad for p in again.trained().values())


def test_a_folder_without_its_head_says_so(tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(), TASKS["sequence"], PromptTuning(length=4), ROWS, **SHORT)
    object.__setattr__(tuned, "head", None)
    with pytest.raises(PromptFileError, match=r"(?s)the head is not that of its task.*weight"):
        load(tuned.save(tmp_path / "prompt"), tiny_backbone())


class InterruptAt(Silent):
    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, record: Record) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_with_the_same_head(tmp_path: Path) -> None:
    given = (tiny_backbone(), TASKS["token"], PromptTuning(length=4), ROWS, ROWS)
    settings: dict[str, Any] = {"steps": 6, "batch_size": 8, "evaluate_every": 2}
    undisturbed = fit(*given, progress=False, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(*given, folder=tmp_path, progress=InterruptAt(3), **settings)
    resumed = fit(*given, folder=tmp_path, progress=False, **settings)
    assert resumed.trained().keys() == undisturbed.trained().keys()
    for name, tensor in undisturbed.trained().items():
        assert torch.equal(resumed.trained()[name], tensor)


def test_the_head_has_a_learning_rate_of_its_own() -> None:
    def trained(**settings: Any) -> dict[str, Tensor]:
        return dict(
            fit(
                tiny_backbone(), TASKS["sequence"], PromptTuning(length=4), ROWS, **SHORT, **settings
            ).trained()
        )

    usual, head_still, prompt_still = (
        trained(),
        trained(head_learning_rate=1e-30),
        trained(learning_rate=1e-30),
    )
    assert head_still["head.bias"].abs().max() < 1e-20
    assert usual["head.bias"].abs().max() > 1e-4
    assert (prompt_still["prompt.tokens"] - usual["prompt.tokens"]).abs().max() > 1e-4
    assert prompt_still["head.bias"].abs().max() > 1e-4


def test_heads_of_many_tasks_answer_in_one_batch_beside_words() -> None:
    backbone = tiny_backbone()
    prompts = [with_head(backbone, task, seed=i, length=i + 3) for i, task in enumerate(TASKS.values())]
    words = TunedPrompt(backbone, WORDS_TASK, PromptTuning(length=2), VirtualTokens(torch.randn(2, 48)))
    prompts.append(words)
    inputs = [row for row in ROWS[:3] for _ in prompts]
    numbers = [n for _ in ROWS[:3] for n in range(len(prompts))]
    found = MixedPrompts(prompts).predict(inputs, numbers, batch_size=7)
    for value, number, prediction in zip(inputs, numbers, found, strict=True):
        (alone,) = prompts[number].predict([value])
        assert_equal_up_to_rounding(prediction, alone)


def test_methods_that_train_nothing_refuse_a_head() -> None:
    for method in (ZeroShot(), ManualPrompt("good film"), FewShot(shots=2)):
        with pytest.raises(ValueError, match="a head that must be trained: take LinearProbe"):
            fit(tiny_backbone(), TASKS["sequence"], method, ROWS, **SHORT)


def test_a_prompt_for_words_has_no_head_to_ask() -> None:
    tuned = with_head(tiny_backbone(), TASKS["sequence"])
    words = TunedPrompt(tuned.backbone, WORDS_TASK, tuned.method, tuned.module)
    with pytest.raises(ValueError, match="has no head"):
        words.model.outputs([tuned.encoder.encode(ROWS[0])])


def test_a_prompt_with_a_head_does_not_go_to_peft(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no head"):
        with_head(tiny_backbone(), TASKS["sequence"]).export_peft(tmp_path / "p")


def test_a_prompt_may_start_from_the_labels_names() -> None:
    tuned = fit(tiny_backbone(), TASKS["sequence"], PromptTuning(length=4, init="labels"), ROWS, **SHORT)
    assert isinstance(tuned.task, SequenceClassification)
    assert not isinstance(tuned.task, TextClassification)
