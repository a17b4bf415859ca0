"""Full fine-tuning: every weight of a copy moves, the given backbone stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt import FullTuning, WrongBackboneError, fit, load
from tests.tiny.language import Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone

SHORT: dict[str, Any] = {"steps": 2, "batch_size": 8, "learning_rate": 1e-3, "progress": False}
TEXTS = [row["text"] for row in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
def test_every_weight_of_the_copy_moves_and_the_backbone_stays(
    architecture: Architecture, tied: bool
) -> None:
    backbone = tiny_backbone(architecture, tied=tied, dtype=torch.bfloat16)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, TASK, FullTuning(), ROWS, **SHORT)
    own = dict(tuned.backbone.model.named_parameters())
    given = dict(backbone.model.named_parameters())
    assert tuned.trained().keys() == {f"backbone.{name}" for name in given}
    assert tuned.recipe["trained_parameters"] == sum(p.numel() for p in given.values())
    for name, parameter in own.items():
        assert parameter.dtype == torch.float32
        assert not torch.equal(parameter, given[name].float()), name
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in given.values())
    assert not any(module.training for module in tuned.backbone.model.modules())


def test_a_model_of_float64_is_trained_in_float64(tmp_path: Path) -> None:
    backbone = tiny_backbone(dtype=torch.float64)
    tuned = fit(backbone, TASK, FullTuning(), ROWS, **SHORT)
    assert {p.dtype for p in tuned.backbone.model.parameters()} == {torch.float64}
    again = load(tuned.save(tmp_path / "tuned"), backbone)  # in float32, as everything is saved
    found, expected = again.predict(TEXTS), tuned.predict(TEXTS)
    assert [p.label for p in found] == [p.label for p in expected]


def test_the_copy_learns(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    tuned = fit(
        backbone, TASK, FullTuning(), ROWS, ROWS, steps=20, batch_size=16, learning_rate=3e-3, progress=False
    )
    assert tuned.evaluate(ROWS)["accuracy"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tuned_weights_come_back_on_the_backbone_they_started_from(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    backbone = tiny_backbone(tied=tied, dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, TASK, FullTuning(), ROWS, **SHORT)
    again = load(tuned.save(tmp_path / "tuned"), backbone)
    assert again.predict(TEXTS) == tuned.predict(TEXTS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    twice = load(again.save(tmp_path / "again"), backbone)
    assert twice.predict(TEXTS) == tuned.predict(TEXTS)
    with pytest.raises(WrongBackboneError, match="other weights"):
        load(tmp_path / "tuned", tiny_backbone(tied=tied, dtype=dtype, seed=1))
