"""softprompt train: the files that it writes, its errors, and resuming."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from softprompt import store
from softprompt.tasks.classes import ClassPrediction
from softprompt.tasks.classification import TextClassificationEncoder
from softprompt.training.progress import Record, Silent
from tests.cli.runs import as_json, softprompt, write_config, write_rows


def tensors_of(run: Path) -> torch.Tensor:
    return store.load(run / "prompt").tensors["prompt.tokens"]


def test_a_finished_run_has_prompt_config_history_metrics_and_curve(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert names == {"config.yaml", "checkpoint", "history.jsonl", "curve.png", "prompt", "metrics.json"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["recipe"]["steps"] == 6
    assert config["recipe"]["optimizer"] == "adamw"  # defaults are written out
    history = [json.loads(line) for line in (trained / "history.jsonl").read_text().splitlines()]
    assert [record["step"] for record in history] == [1, 2, 3, 4, 5, 6]
    assert "eval/accuracy" in history[-1]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["rows"] == {"train": 16, "validation": 16, "test": 16}
    assert 0 <= metrics["metrics"]["test"]["accuracy"] <= 1
    assert metrics["versions"]["torch"] == torch.__version__
    assert (trained / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert store.load(trained / "prompt").metrics["test"] == metrics["metrics"]["test"]


def test_the_result_stands_beside_the_majority_class_and_the_next_command(config: Path) -> None:
    result = softprompt("train", config, "-o", config.parent / "run", "--quiet")
    assert result.exit_code == 0
    assert "validation accuracy" in result.stdout
    assert "majority class 0.5000" in result.stdout
    assert f"softprompt predict {config.parent / 'run' / 'prompt'}" in result.stdout


@pytest.mark.slow
def test_the_written_config_repeats_the_run_bit_identically(config: Path) -> None:
    first, second = config.parent / "first", config.parent / "second"
    as_json("train", config, "method.length=2", "--output", first, "--quiet")
    as_json("train", first / "config.yaml", "--output", second, "--quiet")
    assert torch.equal(tensors_of(first), tensors_of(second))


def test_json_leaves_one_object_on_stdout_and_progress_on_stderr(config: Path) -> None:
    result = softprompt("train", config, "recipe.steps=3", "--output", config.parent / "run", "--json")
    values = json.loads(result.stdout)
    assert values["steps"] == 3
    assert values["trained_parameters"] == 3 * 48
    assert values["metrics"]["validation"]["majority_accuracy"] == 0.5
    assert "step 3/3" in result.stderr


def test_a_method_without_training_gives_a_run_without_a_curve(config: Path) -> None:
    run = config.parent / "run"
    values = as_json("train", config, "method=zero-shot", "--output", run, "--quiet")
    assert values["trained_parameters"] == 0
    assert not (run / "curve.png").exists()
    assert (run / "metrics.json").exists()


def test_a_finished_run_is_refused_and_left_as_it_is(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    result = softprompt("train", trained.parent / "run.yaml", "--output", trained, "--quiet")
    assert result.exit_code == 1
    assert "--overwrite" in result.stderr
    assert "Traceback" not in result.output
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_overwrite_trains_anew_instead_of_resuming_the_finished_run(config: Path) -> None:
    run = config.parent / "run"
    as_json("train", config, "seed=1", "--output", run, "--quiet")
    first = tensors_of(run)
    as_json("train", config, "seed=2", "--output", run, "--quiet", "--overwrite")
    assert not torch.equal(tensors_of(run), first)
    assert yaml.safe_load((run / "config.yaml").read_text())["seed"] == 2


@pytest.mark.slow
def test_of_two_trainings_into_one_folder_the_second_is_told(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = config.parent / "run", []

    def update(self: Silent, record: Record) -> None:
        if record.step == 2:
            told.append(softprompt("train", config, "seed=5", "--output", run, "--quiet", "--overwrite"))

    monkeypatch.setattr(Silent, "update", update)
    first = softprompt("train", config, "--output", run, "--quiet")
    assert first.exit_code == 0
    [second] = told
    assert second.exit_code == 1
    assert "another training writes to" in second.stderr
    assert "Traceback" not in second.output
    assert json.loads((run / "metrics.json").read_text())["recipe"]["seed"] == 1
    monkeypatch.undo()
    as_json("train", config, "--output", run, "--quiet", "--overwrite")  # it is free again


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    def update(self: Silent, record: Record) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Silent, "update", update)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume_and_ends_bit_identical(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = config.parent / "whole", config.parent / "broken"
    as_json("train", config, "method.length=2", "--output", whole, "--quiet")
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=4)
        result = softprompt("train", config, "method.length=2", "--output", broken, "--quiet", "--no-resume")
    assert result.exit_code == 130
    assert "interrupted after step 4 of 6" in result.stderr
    assert f"softprompt train {config} method.length=2 --output {broken} --quiet\n" in result.stderr
    assert not (broken / "prompt").exists()

    as_json("train", config, "method.length=2", "--output", broken, "--quiet")
    assert torch.equal(tensors_of(broken), tensors_of(whole))


def test_an_unfinished_run_is_not_resumed_with_other_settings(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config.parent / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=4)
        softprompt("train", config, "--output", run, "--quiet")
    result = softprompt("train", config, "method.init=uniform", "--output", run, "--quiet")
    assert result.exit_code == 1
    assert "method.init is 'auto' there and 'uniform' now" in result.stderr
    assert "--no-resume" in result.stderr
    anew = as_json("train", config, "method.init=uniform", "--output", run, "--quiet", "--no-resume")
    assert anew["steps"] == 6


@pytest.mark.slow
def test_no_resume_that_is_killed_itself_leaves_nothing_of_the_older_run(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, changed = config.parent / "run", [config, "method.init=uniform"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, step=4)
        softprompt("train", config, "--output", run, "--quiet")
    with monkeypatch.context() as patch:

        def killed(*_: object) -> None:
            raise RuntimeError("killed")

        patch.setattr(
            "softprompt.training.ongoing.save_checkpoint", killed
        )  # as SIGKILL before the first checkpoint
        with pytest.raises(RuntimeError, match="killed"):
            softprompt("train", *changed, "--output", run, "--quiet", "--no-resume", "--debug")
    as_json("train", *changed, "--output", run, "--quiet")
    as_json("train", *changed, "--output", config.parent / "whole", "--quiet")
    assert torch.equal(tensors_of(run), tensors_of(config.parent / "whole"))


@pytest.mark.slow
def test_the_last_good_prompt_of_a_run_that_diverged_is_kept_and_said(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, right = config.parent / "run", TextClassificationEncoder.loss
    calls = 0

    def breaks_at_the_fourth_step(self: Any, *given: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return right(self, *given) * (float("nan") if calls == 4 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(TextClassificationEncoder, "loss", breaks_at_the_fourth_step)
        result = softprompt("train", config, "--output", run, "--quiet")
    assert result.exit_code == 1
    assert "training diverged at step 4" in result.stderr
    assert f"they are saved in {run / 'last-good'}\n" in result.stderr
    assert "to train with other settings give --no-resume" in result.stderr
    assert softprompt("predict", run / "last-good", "good film").exit_code == 0
    as_json("train", config, "recipe.learning_rate=0.001", "--output", run, "--quiet", "--no-resume")
    assert not (run / "last-good").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("recipe.stepz=3", "did you mean 'steps'"),
        ("data.train=nowhere.csv", "there is no file nowhere.csv"),
        ("data.test=nowhere.csv", "there is no file nowhere.csv"),
        ("backbone.dtype=float12", "unknown precision 'float12'"),
        ("backbone.device=gpu", "device is 'gpu'"),
        ("backbone.device=cuda:99", "try --device cpu"),
        ("task.template='{txt}'", "'txt' is needed"),
        ("task.template={text}", "put quotes around"),
    ],
)
def test_a_mistake_is_one_message_without_traceback(config: Path, change: str, message: str) -> None:
    result = softprompt("train", config, change, "--output", config.parent / "run", "--quiet")
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_an_output_folder_that_cannot_be_written_is_one_message_that_says_what_to_do(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for where, replaced in (
        ("softprompt.files.os.fsync", full),
        ("softprompt.cli._run_folder.Path.mkdir", locked),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(where, replaced)
            result = softprompt("train", config, "--output", config.parent / "out", "--quiet")
        assert result.exit_code == 1
        assert "could not write" in result.stderr
        assert "choose another place" in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.output


def test_a_mistake_is_an_object_with_json_and_an_exception_with_debug(config: Path) -> None:
    arguments = ("train", config, "recipe.stepz=3", "--output", config.parent / "run")
    error = json.loads(softprompt(*arguments, "--json").stdout)["error"]
    assert error["type"] == "ValueError"
    assert "did you mean 'steps'" in error["message"]
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        softprompt(*arguments, "--debug")


def test_warnings_of_the_library_are_lines_and_entries_of_the_object(config: Path) -> None:
    # No row is "maybe", so that label cannot be learned.
    labels = "task.labels={neg: ' negative', pos: ' positive', maybe: ' maybe'}"
    result = softprompt("train", config, labels, "--output", config.parent / "run", "--quiet", "--json")
    assert any(
        "no training row has the labels ['maybe']" in line for line in json.loads(result.stdout)["warnings"]
    )
    assert "warning: no training row" in result.stderr


@pytest.mark.slow
def test_a_result_that_is_no_better_than_the_commonest_label_is_said_once_for_each_data_set(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = TextClassificationEncoder.predict

    def swapped(self: Any, model: Any, rows: Any, **settings: Any) -> list[ClassPrediction]:
        # Of 16 rows, 8 of each label, one is given the wrong label for each that is given the right one.
        answers = own(self, model, rows, **settings)
        return [ClassPrediction(("neg", "pos")[i // 2 % 2], a.probabilities) for i, a in enumerate(answers)]

    monkeypatch.setattr(TextClassificationEncoder, "predict", swapped)
    rows = str(config.with_name("rows.jsonl"))
    place = config.parent / "run"
    result = softprompt("train", config, f"data.test={rows}", "--output", place, "--quiet", "--json")
    said = [line for line in json.loads(result.stdout)["warnings"] if "most frequent" in line]
    assert [line.split()[0] for line in said] == ["validation", "test"]
    assert result.stderr.count("is no better than always giving the most frequent label") == 2
    found = as_json("evaluate", place, "--data", rows, "--dtype", "float32", "--device", "cpu")
    assert found["warnings"] == [
        "accuracy 0.5000 is no better than always giving the most frequent label, 0.5000"
    ]


def test_a_generation_task_runs_from_config_to_prediction(config: Path) -> None:
    place = config.parent
    rows = [{"question": f"what is {word}", "answer": " good"} for word in ("one", "two", "three", "four")]
    source = str(write_rows(place / "questions.jsonl", rows))
    task = {"name": "text-generation", "template": "{question} answer", "max_new_tokens": 4}
    write_config(config, task=task, data={"train": source})
    as_json("train", config, "recipe.steps=3", "--output", place / "run", "--quiet")
    [answer] = as_json("predict", place / "run", "what is five")["predictions"]
    assert answer["input"] == "what is five"
    assert isinstance(answer["text"], str)


@pytest.mark.slow
def test_a_prefix_lm_is_a_key_of_the_backbone_and_is_found_again(config: Path) -> None:
    run = config.parent / "run"
    assert as_json("train", config, "backbone.prefix_lm=true", "--output", run, "--quiet")["steps"] == 6
    assert yaml.safe_load((run / "config.yaml").read_text())["backbone"]["prefix_lm"] is True
    assert store.load(run / "prompt").backbone.family == "prefix-lm"
    [read] = as_json("predict", run, "the film is good")["predictions"]
    plain = config.parent / "plain"
    as_json("train", config, "backbone.packed=false", "--output", plain, "--quiet")
    assert not torch.equal(tensors_of(run), tensors_of(plain))
    assert read["input"] == "the film is good"
    result = softprompt("train", config, "backbone.prefix_lm=true", "--output", plain, "--quiet")
    assert result.exit_code != 0


@pytest.mark.slow
def test_the_config_of_a_run_says_nobodys_name_and_repeats_the_run(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(config.parent))
    run = config.parent / "run"
    assert softprompt("train", config, "-o", run, "--quiet").exit_code == 0
    written = (run / "config.yaml").read_text()
    assert str(config.parent) not in written
    assert yaml.safe_load(written)["backbone"]["name"] == "~/backbone"
    again = softprompt("train", run / "config.yaml", "-o", config.parent / "again", "--quiet")
    assert again.exit_code == 0, again.stderr
    assert torch.equal(tensors_of(run), tensors_of(config.parent / "again"))
