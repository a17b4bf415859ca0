"""fit: what is trained, what stays bit-identical, what is learned, and which warnings there are."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from softprompt import (
    PromptTuning,
    SoftpromptWarning,
    TextClassification,
    TextGeneration,
    TrainingDiverged,
    ZeroShot,
    fit,
    load,
)
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.prompts import BuildContext
from softprompt.training.progress import Record, Silent
from tests.tiny.language import ARCHITECTURES, Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone

# After so few steps it may well be so.
unlearned = pytest.mark.filterwarnings("ignore:every validation row was given:softprompt.SoftpromptWarning")

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}
LEARNING: dict[str, Any] = {"steps": 40, "batch_size": 8, "learning_rate": 0.05, "progress": False}


def start_of(method: PromptTuning, backbone: CausalBackbone, seed: int = 0) -> torch.Tensor:
    """The virtual tokens that a run with this seed begins with, (P, d)."""
    context = BuildContext(spec=backbone.spec, generator=torch.Generator().manual_seed(seed))
    return method.build(context).state_dict()["tokens"]


def assert_untouched(
    backbone: CausalBackbone, before: dict[str, torch.Tensor], config: dict[str, Any]
) -> None:
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    assert backbone.model.config.to_dict() == config
    assert backbone.model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in backbone.model.modules())


@pytest.mark.slow
@unlearned
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_prompt_moves_and_the_backbone_stays_bit_identical(
    architecture: Architecture, tied: bool
) -> None:
    backbone = tiny_backbone(architecture, tied=tied)
    before = copy.deepcopy(backbone.model.state_dict())
    config = backbone.model.config.to_dict()
    method = PromptTuning(length=4)
    # evaluate_every=1: each step follows an evaluation under no_grad.
    tuned = fit(backbone, TASK, method, ROWS, ROWS[:4], evaluate_every=1, **SHORT)
    assert [record["gradient_norm"] > 0 for record in tuned.history] == [True] * 3
    assert tuned.recipe["trained_parameters"] == 4 * backbone.spec.width
    last = fit(backbone, TASK, method, ROWS, **SHORT)  # without validation rows the last step's tensors stand
    moved = (last.module.state_dict()["tokens"] != start_of(method, backbone)).all(dim=1)
    assert moved.all()
    assert_untouched(backbone, before, config)


@pytest.mark.slow
@unlearned
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_prompt_and_optimizer_are_float32_whatever_the_trunk_is(
    tmp_path: Path, architecture: Architecture, dtype: torch.dtype
) -> None:
    backbone = tiny_backbone(architecture, dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    config = backbone.model.config.to_dict()
    tuned = fit(backbone, TASK, PromptTuning(length=4), ROWS, ROWS[:4], folder=tmp_path, **SHORT)
    assert tuned.module.state_dict()["tokens"].dtype == torch.float32
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        kept = {name: file.get_tensor(name).dtype for name in file.keys() if name != "history"}  # noqa: SIM118
    assert any(name.startswith("optimizer/prompt.tokens/exp_avg") for name in kept)
    assert set(kept.values()) == {torch.float32}
    assert backbone.dtype == dtype
    assert_untouched(backbone, before, config)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_gradient_checkpointing_trains_the_same_prompt(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    before = copy.deepcopy(backbone.model.state_dict())
    config = backbone.model.config.to_dict()
    plain = fit(backbone, TASK, PromptTuning(length=4), ROWS, **SHORT)
    saving = fit(backbone, TASK, PromptTuning(length=4), ROWS, gradient_checkpointing=True, **SHORT)
    torch.testing.assert_close(saving.module.state_dict(), plain.module.state_dict(), rtol=0, atol=1e-6)
    assert_untouched(backbone, before, config)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_a_label_that_hangs_on_one_word_is_learned(architecture: Architecture, tied: bool) -> None:
    backbone = tiny_backbone(architecture, tied=tied, dtype=torch.float32)
    tuned = fit(backbone, TASK, PromptTuning(length=4), ROWS, **{**LEARNING, "steps": 60})
    losses = [record["loss"] for record in tuned.history]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    assert tuned.evaluate(ROWS)["accuracy"] > 0.9  # majority: 0.5


def test_the_checkpoint_with_the_best_validation_metric_is_kept() -> None:
    backbone = tiny_backbone()
    tuned = fit(
        backbone, TASK, PromptTuning(length=4), ROWS, ROWS, steps=12, batch_size=8, evaluate_every=2,
        learning_rate=0.05, progress=False,
    )  # fmt: skip
    seen = {r["step"]: r["eval/accuracy"] for r in tuned.history if "eval/accuracy" in r}
    assert list(seen) == [2, 4, 6, 8, 10, 12]
    assert tuned.recipe["best_step"] == max(seen, key=seen.__getitem__)
    assert tuned.metrics["validation"]["accuracy"] == max(seen.values())


def test_the_same_seed_trains_the_same_prompt_and_another_seed_another() -> None:
    backbone = tiny_backbone()
    one, again, other = (
        fit(backbone, TASK, PromptTuning(length=4), ROWS, seed=seed, **SHORT).module.state_dict()["tokens"]
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_callers_random_state_is_left_alone() -> None:
    backbone = tiny_backbone()
    state = torch.get_rng_state()
    fit(backbone, TASK, PromptTuning(length=4), ROWS, **SHORT)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("as_text", [True, False])
def test_training_data_may_be_a_file(tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "train.csv"
    path.write_text("text,label\nfilm,pos\ndog,neg\n", encoding="utf-8")
    tuned = fit(tiny_backbone(), TASK, PromptTuning(length=2), str(path) if as_text else path, **SHORT)
    assert tuned.recipe["rows"] == 2


@pytest.mark.parametrize(
    ("template", "length"),
    [("{soft:3}{text} sentiment", 3), ("{text}{soft:2} sentiment{soft}", 5), ("{bos}{soft:3}{text}", 3)],
)
def test_virtual_tokens_stand_where_the_template_puts_them(template: str, length: int) -> None:
    task = TextClassification(template, labels=TASK.labels)
    tuned = fit(tiny_backbone(), task, PromptTuning(length=length), ROWS, **SHORT)
    context = tuned.encoder.encode({"text": "film"}, answer=False).context
    assert sorted(atom for atom in context if atom < 0) == list(range(-length, 0))
    assert all(record["gradient_norm"] > 0 for record in tuned.history)


class InterruptAt(Silent):
    """Ctrl-C after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, record: Record) -> None:
        if record.step == self.step:
            raise KeyboardInterrupt


@unlearned
def test_a_run_stopped_by_ctrl_c_ends_with_the_same_prompt_when_it_is_started_again(tmp_path: Path) -> None:
    given = (tiny_backbone(), TASK, PromptTuning(length=4), ROWS, ROWS)
    settings: dict[str, Any] = {"steps": 6, "batch_size": 8, "evaluate_every": 2}
    undisturbed = fit(*given, progress=False, **settings)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(*given, folder=tmp_path, progress=InterruptAt(3), **settings)
    assert any(f"start it again with the folder {tmp_path}" in note for note in caught.value.__notes__)
    assert (tmp_path / "checkpoint.safetensors").is_file()
    resumed = fit(*given, folder=tmp_path, progress=False, **settings)
    assert torch.equal(resumed.module.state_dict()["tokens"], undisturbed.module.state_dict()["tokens"])
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in undisturbed.history]
    assert resumed.metrics == undisturbed.metrics


@unlearned
def test_the_best_prompt_before_a_divergence_is_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softprompt.tasks.classification import TextClassificationEncoder

    backbone = tiny_backbone()
    before, config = copy.deepcopy(backbone.model.state_dict()), backbone.model.config.to_dict()
    settings = {"steps": 4, "batch_size": 8, "evaluate_every": 1, "progress": False}
    right = TextClassificationEncoder.loss
    calls: list[int] = []

    def breaks_at_the_third_step(self: Any, *given: Any) -> torch.Tensor:
        calls.append(1)
        return right(self, *given) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(TextClassificationEncoder, "loss", breaks_at_the_third_step)
    with pytest.raises(TrainingDiverged, match=r"at step 3: loss nan.*Try a learning_rate of"):
        fit(backbone, TASK, PromptTuning(length=4), ROWS, ROWS, folder=tmp_path, **settings)
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        best = file.get_tensor("best/prompt.tokens")
    assert best.isfinite().all()
    assert_untouched(backbone, before, config)
    # The loss is whole again: the run goes on from there.
    tuned = fit(backbone, TASK, PromptTuning(length=4), ROWS, ROWS, folder=tmp_path, **settings)
    assert tuned.recipe["steps_made"] == 4


def test_one_label_for_every_validation_row_is_warned_of() -> None:
    same_text = [{"text": "film", "label": "pos"}, {"text": "film", "label": "neg"}]
    with pytest.warns(SoftpromptWarning, match=r"every validation row was given the label '(neg|pos)'"):
        fit(tiny_backbone(), TASK, PromptTuning(length=4), ROWS, same_text, **SHORT)


def test_a_label_without_training_rows_is_warned_of() -> None:
    task = TextClassification(TASK.template, labels={**TASK.labels, "mixed": " maybe"})
    with pytest.warns(SoftpromptWarning, match=r"no training row has the labels \['mixed'\]"):
        fit(tiny_backbone(), task, PromptTuning(length=4), ROWS, **SHORT)


def test_a_loss_that_does_not_fall_is_warned_of() -> None:
    rows = [{"text": "film", "label": "pos"}, {"text": "film", "label": "neg"}]  # nothing tells them apart
    with pytest.warns(SoftpromptWarning, match=r"the training loss did not fall.*learning_rate"):
        fit(
            tiny_backbone(), TASK, PromptTuning(length=4), rows, steps=20, batch_size=2, learning_rate=1e-12,
            progress=False,
        )  # fmt: skip


def test_a_warning_points_to_the_line_that_called_fit() -> None:
    task = TextClassification(TASK.template, labels={**TASK.labels, "mixed": " maybe"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tiny_backbone(), task, ZeroShot(), ROWS, progress=False)
    assert [Path(warning.filename).name for warning in caught] == [Path(__file__).name]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_backbone_that_shares_nothing_trains_the_same_prompt(architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    padded = CausalBackbone(backbone.model, backbone.tokenizer, name=backbone.name, packed=False)
    one, other = (fit(b, TASK, PromptTuning(length=4), ROWS, ROWS, **LEARNING) for b in (backbone, padded))
    tokens = (tuned.module.state_dict()["tokens"] for tuned in (one, other))
    torch.testing.assert_close(*tokens, rtol=0, atol=1e-4)
    assert one.metrics == other.metrics
    assert one.predict(["film", "dog now"])[0].label == other.predict(["film", "dog now"])[0].label


def test_validation_sees_the_prompt_as_it_is_at_that_step() -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, PromptTuning(length=4), ROWS, ROWS, **LEARNING)
    seen = {r["step"]: r["eval/accuracy"] for r in tuned.history if "eval/accuracy" in r}
    assert len(set(seen.values())) > 1
    assert tuned.evaluate(ROWS)["accuracy"] == max(seen.values())
    assert fit(backbone, TASK, ZeroShot(), ROWS, ROWS, progress=False).metrics["validation"]["accuracy"] < 1


@pytest.mark.slow
def test_a_text_that_follows_another_is_learned_as_well_as_a_label(tmp_path: Path) -> None:
    task = TextGeneration("{text} sentiment", target=" {word}")
    rows = [{"text": row["text"], "word": {"pos": "good", "neg": "bad"}[row["label"]]} for row in ROWS]
    backbone = tiny_backbone(dtype=torch.float32)
    tuned = fit(backbone, task, PromptTuning(length=4), rows, rows, **LEARNING)
    losses = [record["loss"] for record in tuned.history]
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]
    assert task.main_metric in tuned.metrics["validation"]
    again = load(tuned.save(tmp_path / "prompt"), backbone)
    assert again.predict(["film", "dog"]) == tuned.predict(["film", "dog"])
    assert all(isinstance(answer, str) for answer in tuned.predict(["film", "dog"]))
