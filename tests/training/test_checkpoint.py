"""Checkpoints: an interrupted run ends bit-identical, and the checkpoint of another run is refused."""

from __future__ import annotations

import errno
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.testing import assert_close

from softprompt.errors import CheckpointError
from softprompt.training.checkpoint import FILE
from softprompt.training.progress import Silent
from softprompt.training.recipe import Recipe
from tests.processes import fork_server
from tests.tiny.training import (
    KILLED_RECIPE,
    ToyModel,
    evaluation,
    killed_run,
    tensors,
    toy_rows,
    toy_run,
)

RECIPE = Recipe(steps=12, batch_size=5, evaluate_every=3)


class Interrupting(Silent):
    """Ctrl-C after a step."""

    def __init__(self, after: int) -> None:
        self.after = after

    def update(self, record: Any) -> None:
        if record.step == self.after:
            raise KeyboardInterrupt


def undisturbed(recipe: Recipe = RECIPE) -> dict[str, torch.Tensor]:
    model = ToyModel(dropout=0.3)
    toy_run(model, recipe)
    return tensors(model)


def interrupted(folder: Path, after: int = 5, recipe: Recipe = RECIPE) -> KeyboardInterrupt:
    """A run in `folder` that a Ctrl-C ended."""
    with pytest.raises(KeyboardInterrupt) as raised:
        toy_run(ToyModel(dropout=0.3), recipe, folder=folder, progress=Interrupting(after))
    return raised.value


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_bit_identical(tmp_path: Path) -> None:
    context = fork_server()
    draw = random.Random(0)
    ways = ["step", "written", "renamed", "outside"] * 5
    draw.shuffle(ways)
    for way in [*ways, "never"]:
        # A checkpoint is written at every second step, so that each attempt gets at least a step further.
        count = draw.randint(2, 4) if way in ("written", "renamed") else draw.randint(4, 12)
        listening, telling = context.Pipe(duplex=False)
        process = context.Process(target=killed_run, args=(tmp_path, way, count, telling))
        process.start()
        telling.close()
        if way == "outside":
            for _ in range(count):
                listening.recv()
            process.kill()
        process.join()
        listening.close()
        assert process.exitcode == (0 if way == "never" else -signal.SIGKILL), way
    end = safetensors.torch.load_file(tmp_path / "end.safetensors")
    assert_close(end, undisturbed(KILLED_RECIPE), rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("after", [1, 5, 6, 12])
def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, after: int, optimizer: Any) -> None:
    recipe = Recipe(steps=12, batch_size=5, evaluate_every=3, optimizer=optimizer)
    notes = interrupted(tmp_path, after, recipe).__notes__
    assert notes == [
        f"training was interrupted after step {after} of 12",
        f"start it again with the folder {tmp_path} to resume",
    ]
    model = ToyModel(dropout=0.3)
    result = toy_run(model, recipe, folder=tmp_path)
    assert (result.resumed_after, result.steps, len(result.history)) == (after, 12, 12)
    assert_close(tensors(model), undisturbed(recipe), rtol=0, atol=0)


def test_ctrl_c_in_the_middle_of_an_optimizer_step_waits_for_its_end(tmp_path: Path) -> None:
    made = 0

    def ctrl_c(*_: object) -> None:
        nonlocal made
        made += 1
        if made == 5:
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore Ctrl-C
    hook = register_optimizer_step_pre_hook(ctrl_c)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            toy_run(ToyModel(dropout=0.3), RECIPE, folder=tmp_path)
    finally:
        hook.remove()
    assert "after step 5 of 12" in raised.value.__notes__[0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    model = ToyModel(dropout=0.3)
    toy_run(model, RECIPE, folder=tmp_path)
    assert_close(tensors(model), undisturbed(), rtol=0, atol=0)


def test_ctrl_c_in_an_evaluation_makes_it_up_when_resumed(tmp_path: Path) -> None:
    model = ToyModel(dropout=0.3)
    calls = 0

    def evaluate() -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return evaluation(model)

    with pytest.raises(KeyboardInterrupt):
        toy_run(model, RECIPE, folder=tmp_path, evaluate=evaluate)
    model = ToyModel(dropout=0.3)
    result = toy_run(model, RECIPE, folder=tmp_path)
    assert [record.step for record in result.history if record.metrics] == [3, 6, 9, 12]
    assert_close(tensors(model), undisturbed(), rtol=0, atol=0)


def test_ctrl_c_without_a_folder_says_that_nothing_was_saved() -> None:
    with pytest.raises(KeyboardInterrupt) as raised:
        toy_run(ToyModel(), RECIPE, progress=Interrupting(2))
    assert "nothing was saved" in raised.value.__notes__[1]


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = ToyModel()
    expected = toy_run(first, RECIPE, folder=tmp_path)
    written = (tmp_path / FILE).read_bytes()
    again = ToyModel()
    result = toy_run(again, RECIPE, folder=tmp_path)
    assert again.calls == 0
    assert result.history == expected.history
    assert (result.best_step, result.metrics) == (expected.best_step, expected.metrics)
    assert_close(tensors(again), tensors(first), rtol=0, atol=0)
    assert (tmp_path / FILE).read_bytes() == written


def test_a_run_that_patience_ended_stays_ended(tmp_path: Path) -> None:
    recipe = Recipe(steps=12, evaluate_every=2, patience=2)
    constant = {"evaluate": lambda: {"accuracy": 0.5}, "main_metric": "accuracy", "folder": tmp_path}
    assert toy_run(ToyModel(), recipe, **constant).steps == 6
    model = ToyModel()
    result = toy_run(model, recipe, **constant)
    assert (result.steps, result.stopped_early, model.calls) == (6, True, 0)


def test_resume_false_starts_anew(tmp_path: Path) -> None:
    interrupted(tmp_path)
    model = ToyModel(dropout=0.3)
    result = toy_run(model, RECIPE, folder=tmp_path, resume=False)
    assert result.resumed_after == 0
    assert_close(tensors(model), undisturbed(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 20}, "recipe.steps is 12 in it and 20 now"),
        ({"seed": 1}, "recipe.seed is 0 in it and 1 now"),
        ({"optimizer": "adafactor"}, "recipe.optimizer is adamw in it and adafactor now"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    interrupted(tmp_path)
    model = ToyModel()
    before = tensors(model)
    recipe = Recipe(**{"steps": 12, "batch_size": 5, "evaluate_every": 3} | settings)
    with pytest.raises(CheckpointError, match=rf"of another run: .*{said}.*another folder, or resume=False"):
        toy_run(model, recipe, folder=tmp_path)
    assert_close(tensors(model), before, rtol=0, atol=0)


def test_a_checkpoint_of_other_rows_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    with pytest.raises(CheckpointError, match=r"rows.count is 24 in it and 23 now; rows.sha256 is"):
        toy_run(ToyModel(), RECIPE, toy_rows(23), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"of another run: rows.sha256 is"):
        toy_run(ToyModel(), RECIPE, toy_rows(seed=9), folder=tmp_path)


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path)
    model = ToyModel()
    model.prompt = torch.nn.Parameter(torch.zeros(4, 5))
    with pytest.raises(
        CheckpointError, match=r"parameters.prompt is \(3, 5\) torch.float32 in it and \(4, 5\)"
    ):
        toy_run(model, RECIPE, folder=tmp_path)


def test_settings_that_change_no_tensor_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path)
    recipe = Recipe(steps=12, batch_size=5, evaluate_every=3, checkpoint_every=1, gradient_checkpointing=True)
    assert toy_run(ToyModel(), recipe, folder=tmp_path).resumed_after == 5


def test_every_damage_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    interrupted(tmp_path)
    path = tmp_path / FILE
    whole = path.read_bytes()
    flips = [bytes([*whole[:i], whole[i] ^ 1, *whole[i + 1 :]]) for i in range(5, len(whole), 97)]
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], *flips):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint.safetensors is (damaged|of another run|no)"):
            toy_run(ToyModel(), RECIPE, folder=tmp_path)


def test_a_safetensors_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.ones(2)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        toy_run(ToyModel(), RECIPE, folder=tmp_path)


def test_a_full_disk_is_named_and_the_last_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path)
    good = (tmp_path / FILE).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(
            CheckpointError, match=rf"{tmp_path}: No space left.*is unchanged. Free some space"
        ):
            toy_run(ToyModel(dropout=0.3), RECIPE, folder=tmp_path)
    assert (tmp_path / FILE).read_bytes() == good
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    model = ToyModel(dropout=0.3)
    toy_run(model, RECIPE, folder=tmp_path)
    assert_close(tensors(model), undisturbed(), rtol=0, atol=0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write a checkpoint to .*file.*there was none before"):
        toy_run(ToyModel(), RECIPE, folder=tmp_path / "file" / "run")


def test_ctrl_c_goes_on_also_where_no_checkpoint_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write a checkpoint" in interrupted(tmp_path / "file" / "run", after=2).__notes__[1]
