"""Probes: a head on the frozen model and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from softprompt import LinearProbe, MLPProbe, SequenceClassification, fit, load
from softprompt.prompts import Method
from tests.tiny.task import ROWS, TASK, tiny_backbone

HEAD = SequenceClassification("{text} sentiment", labels=["neg", "pos"])
PROBES: list[Method] = [LinearProbe(), MLPProbe(), MLPProbe(layers=2, hidden=24, dropout=0.5)]
each_probe = pytest.mark.parametrize("method", PROBES, ids=["linear", "mlp", "deeper"])


@pytest.mark.slow
@each_probe
def test_a_probe_trains_its_head_alone(method: Method, tmp_path: Path) -> None:
    backbone = tiny_backbone(dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(
        backbone, HEAD, method, ROWS, ROWS, steps=60, batch_size=8, learning_rate=0.01, progress=False
    )
    assert tuned.backbone.model is backbone.model
    assert all(torch.equal(value, before[name]) for name, value in backbone.model.state_dict().items())
    assert {name.partition(".")[0] for name in tuned.trained()} == {"head"}
    assert tuned.evaluate(ROWS)["accuracy"] > 0.9
    assert tuned.recipe["learning_rate"] == 0.01
    again = load(tuned.save(tmp_path / "probe"), backbone)
    assert again.predict(["film", "dog"]) == tuned.predict(["film", "dog"])
    assert tuned.predict(["film", "dog"]) == tuned.predict(["film", "dog"])  # no dropout


def test_a_linear_probe_is_softmax_regression_on_the_last_token() -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, HEAD, LinearProbe(), ROWS, steps=2, progress=False)
    assert tuned.head is not None
    ids = torch.tensor(backbone.spec.tokenize("film again sentiment"))
    state = backbone.model.base_model(input_ids=ids[None]).last_hidden_state[0, -1]
    expected = tuned.head(state.float()).softmax(dim=-1)
    (found,) = tuned.predict(["film again"])
    assert_close(torch.tensor(list(found.probabilities.values())), expected.detach(), rtol=0, atol=1e-6)


def test_every_layer_of_an_mlp_probe_moves() -> None:
    method = MLPProbe(layers=2, hidden=24)
    start = method.head(48, 2, torch.Generator().manual_seed(0)).state_dict()
    tuned = fit(tiny_backbone(), HEAD, method, ROWS, steps=2, progress=False)
    moved = {name.removeprefix("head."): tensor for name, tensor in tuned.trained().items()}
    assert moved.keys() == start.keys()
    assert all(not torch.equal(moved[name], start[name]) for name in start)


@each_probe
def test_a_probe_needs_a_task_with_a_head(method: Method) -> None:
    with pytest.raises(ValueError, match="take a task with a head, such as SequenceClassification"):
        fit(tiny_backbone(), TASK, method, ROWS, steps=2, progress=False)
