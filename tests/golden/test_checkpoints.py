"""Trainings that were interrupted at commit 3cfa151 resume, and end as they would have ended there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch

import softprompt as sp
from tests.golden import runs
from tests.golden.cases import CASES, HERE, INTERRUPTED, TOGETHER

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

STEPS = 8


@pytest.mark.parametrize("name", INTERRUPTED)
def test_a_training_resumes(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "checkpoints" / name, tmp_path / "checkpoint")
    seen = runs.Seen()
    tuned = runs.trained(CASES[name], folder, seen)
    goes_on(seen, INTERRUPTED[name])
    ends_alike(tuned, folder)


def test_trainings_of_one_pass_go_on_together(tmp_path: Path) -> None:
    folder = shutil.copytree(HERE / "checkpoints" / "together", tmp_path / "checkpoint")
    every = [runs.Seen() for _ in TOGETHER]
    tuned = runs.trained_together(CASES["decoder-prompt-tuning"], folder, every)
    for number, (seen, after) in enumerate(
        zip(every, (5, 4), strict=True)
    ):  # the second had not taken its step yet
        goes_on(seen, after)
        ends_alike(tuned[number], folder / f"run-{number}")


def goes_on(seen: runs.Seen, after: int) -> None:
    assert seen.begun == [after]
    assert seen.steps == list(range(after + 1, STEPS + 1))


def ends_alike(tuned: sp.TunedPrompt, folder: Path) -> None:
    losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    assert [record["loss"] for record in tuned.history] == pytest.approx(losses, rel=1e-3)
    runs.close(runs.state(tuned), safetensors.torch.load_file(folder / "whole.safetensors"))
