"""fit(..., start=...): training starts from the state of another run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import softprompt as sp
from softprompt.prompts import Method
from tests.tiny.vision import ROWS, TASK, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 4, "warmup": 0, "progress": False}
METHODS: list[Method] = [
    sp.VPT(length=2),
    sp.VPT(length=2, projection=4),  # folded away when it is saved
    sp.LinearProbe(),
    sp.BitFit(),
    sp.FullTuning(),
    sp.Adapter(bottleneck=2),
]


UNMOVED = SHORT | {"steps": 1, "learning_rate": 1e-30, "head_learning_rate": 1e-30}


def same(one: sp.TunedPrompt, other: sp.TunedPrompt) -> bool:
    ours, theirs = one.state(), other.state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_a_run_begins_with_everything_that_the_one_before_learned(method: Method) -> None:
    backbone = vision_backbone()
    first = sp.fit(backbone, TASK, method, ROWS, **SHORT)
    before = {name: tensor.clone() for name, tensor in first.state().items()}
    still = sp.fit(backbone, TASK, method, ROWS, start=first, **UNMOVED)
    assert_close(still.state(), before, rtol=0, atol=1e-20)
    images = [row["image"] for row in ROWS[:3]]
    assert_equal_up_to_rounding(still.predict(images), first.predict(images))
    further = sp.fit(backbone, TASK, method, ROWS, start=first, **SHORT)
    assert not same(further, first)
    assert_close(first.state(), before, rtol=0, atol=0)  # the prompt that was started from is as it was


def test_a_state_that_was_copied_starts_as_the_prompt_does() -> None:
    backbone, method = vision_backbone(), sp.VPT(length=2, projection=4)
    first = sp.fit(backbone, TASK, method, ROWS, **SHORT)
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    assert same(
        sp.fit(backbone, TASK, method, ROWS, start=state, **SHORT),
        sp.fit(backbone, TASK, method, ROWS, start=first, **SHORT),
    )


def test_a_start_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    backbone = vision_backbone()
    first = sp.fit(backbone, TASK, sp.VPT(length=2), ROWS, **SHORT)
    with pytest.raises(ValueError, match=r"its prompt.prompts is \(3, 2, 32\), and here it is \(3, 3, 32\)"):
        sp.fit(backbone, TASK, sp.VPT(length=3), ROWS, start=first, **SHORT)
    three = replace(TASK, labels=["red", "blue", "green"])
    with pytest.raises(ValueError, match=r"its head.bias is \(2,\), and here it is \(3,\)"):
        sp.fit(backbone, three, sp.VPT(length=2), ROWS, start=first, **SHORT)
    folded = sp.VPT(length=2, projection=4)
    sp.fit(backbone, TASK, folded, ROWS, **SHORT).save(tmp_path)
    with pytest.raises(ValueError, match=r"projection.*is missing.*fold nothing away when they save"):
        sp.fit(backbone, TASK, folded, ROWS, start=sp.load(tmp_path, backbone), **SHORT)


def test_a_checkpoint_is_not_resumed_from_another_start(tmp_path: Path) -> None:
    backbone, method = vision_backbone(), sp.VPT(length=2)
    one = sp.fit(backbone, TASK, method, ROWS, seed=1, **SHORT)
    other = sp.fit(backbone, TASK, method, ROWS, seed=2, **SHORT)
    found = sp.fit(backbone, TASK, method, ROWS, start=one, folder=tmp_path, **SHORT)
    assert same(sp.fit(backbone, TASK, method, ROWS, start=one, folder=tmp_path, **SHORT), found)
    with pytest.raises(sp.CheckpointError, match="of another run: start is"):
        sp.fit(backbone, TASK, method, ROWS, start=other, folder=tmp_path, **SHORT)
