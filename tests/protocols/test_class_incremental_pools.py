"""Pools of prompts in class-incremental runs: which task chose which prompts, and which expert learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.protocols import class_incremental as module
from softprompt.protocols.class_incremental import class_incremental_run
from tests.protocols.test_class_incremental import QUICK, TASK, TEST, TRAIN
from tests.tiny.vision import vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

POOL = sp.L2P(pool=5, length=2, top=2, diversify=True)


def test_each_task_says_what_it_chose_and_the_next_weighs_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = class_incremental_run(vision_backbone(dtype=torch.float32), TASK, POOL, TRAIN, TEST, **QUICK)
    chosen = [stage["chosen"] for stage in whole.stages]
    assert [sum(counts) for counts in chosen] == [3 * 4 * 2] * 2
    assert whole.prompt.module.state_dict()["before"].tolist() == chosen[0]

    calls = []

    def killed(*arguments: Any, **settings: Any) -> sp.TunedPrompt:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sp.fit(*arguments, **settings)

    study = (vision_backbone(dtype=torch.float32), TASK, POOL, TRAIN, TEST)
    monkeypatch.setattr(module, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        class_incremental_run(*study, folder=tmp_path, **QUICK)
    monkeypatch.setattr(module, "fit", sp.fit)
    resumed = class_incremental_run(*study, folder=tmp_path, **QUICK)
    assert [stage["chosen"] for stage in resumed.stages] == chosen
    for name, tensor in whole.prompt.module.state_dict().items():
        assert torch.equal(tensor, resumed.prompt.module.state_dict()[name]), name


def test_each_task_trains_its_own_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    method = sp.DualPrompt(general=1, general_layers=1, expert=1, expert_layers=1, pool=3)
    states = []

    def noted(*arguments: Any, **settings: Any) -> sp.TunedPrompt:
        tuned = sp.fit(*arguments, **settings)
        states.append({name: tensor.clone() for name, tensor in tuned.state().items()})
        return tuned

    monkeypatch.setattr(module, "fit", noted)
    class_incremental_run(vision_backbone(), TASK, method, TRAIN, TEST, **QUICK)
    moved = (states[0]["prompt.keys"] != states[1]["prompt.keys"]).any(1)
    assert moved.tolist() == [False, True, False]
    with pytest.raises(ValueError, match="task is 3, and there are 3 experts"):
        method.for_task(3)
