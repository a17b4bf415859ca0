"""Class-incremental runs: rows and classes of each task, tests, and resuming after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import softprompt as sp
from softprompt.prompts import Method
from softprompt.protocols import class_incremental, joint
from softprompt.protocols.class_incremental import (
    ClassIncremental,
    class_incremental_run,
)
from softprompt.protocols.joint import joint_training
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.protocols.task_division import class_tasks
from softprompt.records import stages
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import picture, vision_backbone

pytestmark = pytest.mark.filterwarnings("ignore:.*(loss|gradient|same label)::softprompt.SoftpromptWarning")

COLOURS = {"red": (220, 40, 40), "blue": (40, 40, 220), "green": (40, 200, 40), "grey": (128, 128, 128)}
TASK = sp.ImageClassification(labels=list(COLOURS))


def pictures(per_class: int, seed: int) -> list[dict[str, Any]]:
    return [
        {"image": picture(*colour, seed=seed + i), "label": label}
        for i in range(per_class)
        for label, colour in COLOURS.items()
    ]


TRAIN, TEST = pictures(4, seed=0), pictures(2, seed=100)
QUICK: dict[str, Any] = {"tasks": 2, "recipe": sp.Recipe(steps=3, batch_size=4, warmup=0)}
LONGER: dict[str, Any] = {"tasks": 2, "recipe": sp.Recipe(steps=40, batch_size=4, learning_rate=0.1)}


def run(method: Method, folder: Path | None = None, **settings: Any) -> ClassIncremental:
    return class_incremental_run(
        vision_backbone(), TASK, method, TRAIN, TEST, folder=folder, **QUICK | settings
    )


class Fits:
    """`fit`, with a note of what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, killed_in: int | None = None) -> None:
        self.rows: list[list[str]] = []
        self.prompts: list[sp.TunedPrompt] = []
        self.starts: list[Any] = []
        self.killed_in = killed_in
        for protocol in (class_incremental, joint):
            monkeypatch.setattr(protocol, "fit", self)

    def __call__(self, backbone: Any, task: Any, method: Any, rows: Any, **settings: Any) -> sp.TunedPrompt:
        if len(self.rows) == self.killed_in:
            raise KeyboardInterrupt
        self.rows.append([row["label"] for row in rows])
        self.starts.append(settings.get("start"))
        self.prompts.append(sp.fit(backbone, task, method, rows, **settings))
        return self.prompts[-1]


def test_classes_are_divided_in_their_own_order_or_a_drawn_one() -> None:
    assert class_tasks("abcdefg", 3) == (("a", "b", "c"), ("d", "e"), ("f", "g"))
    drawn = class_tasks("abcdefg", 3, seed=1)
    assert drawn == class_tasks("abcdefg", 3, seed=1) != class_tasks("abcdefg", 3, seed=2)
    assert sorted(label for group in drawn for label in group) == list("abcdefg")
    for wrong in (0, 8):
        with pytest.raises(ValueError, match=f"7 labels cannot be divided into {wrong} tasks"):
            class_tasks("abcdefg", wrong)


def test_a_task_trains_on_its_own_rows_alone_and_starts_from_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = Fits(monkeypatch)
    found = run(sp.VPT(length=2))
    assert [sorted(set(labels)) for labels in fits.rows] == [["blue", "red"], ["green", "grey"]]
    assert [len(labels) for labels in fits.rows] == [8, 8]
    assert fits.starts[0] is None
    assert_close(fits.starts[1], fits.prompts[0].state(), rtol=0, atol=0)
    assert found.tasks == (("red", "blue"), ("green", "grey"))
    assert found.prompt.task == TASK


@pytest.mark.parametrize(
    ("logits", "moved"),
    [
        ("present", [[True, True, False, False], [False, False, True, True]]),
        ("seen", [[True, True, False, False], [True] * 4]),
        ("all", [[True] * 4, [True] * 4]),
    ],
)
def test_outputs_of_classes_that_do_not_compete_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, logits: Any, moved: list[list[bool]]
) -> None:
    untouched = sp.fit(
        vision_backbone(), TASK, sp.LinearProbe(), TRAIN, steps=1, learning_rate=1e-30, progress=False
    )
    fits = Fits(monkeypatch)
    run(sp.LinearProbe(), logits=logits)
    states = [prompt.state()["head.weight"] for prompt in (untouched, *fits.prompts)]
    for t in range(2):
        assert [not torch.equal(a, b) for a, b in zip(states[t], states[t + 1], strict=True)] == moved[t]


def test_nothing_of_later_tasks_is_known_in_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = Fits(monkeypatch)
    run(sp.VPT(length=2), rehearsal=Rehearsal(size=2))
    others = [
        dict(row, image=picture(9, 9, 9)) if row["label"] in ("green", "grey") else row for row in TRAIN
    ]
    class_incremental_run(vision_backbone(), TASK, sp.VPT(length=2), others, TEST, **QUICK)
    one, other = fits.prompts[0].state(), fits.prompts[2].state()
    assert_close(one, other, rtol=0, atol=0)


def test_the_matrix_counts_right_answers_among_all_classes_to_rows_of_each_task_so_far(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict, read = sp.TunedPrompt.predict, []

    def noted(self: sp.TunedPrompt, rows: Any, **options: Any) -> Any:
        read.append([row["label"] for row in rows])
        return predict(self, rows, **options)

    monkeypatch.setattr(sp.TunedPrompt, "predict", noted)
    found = run(sp.LinearProbe(), logits="all", **LONGER)
    first, second = ["red", "blue"] * 2, ["green", "grey"] * 2
    assert read == [first, first + second]  # the test rows of a task once after each task
    assert [len(row) for row in found.accuracy] == [1, 2]
    assert found.rows == (4, 4)
    right = [p.label == row["label"] for p, row in zip(predict(found.prompt, TEST), TEST, strict=True)]
    by_task = [
        sum(r for r, row in zip(right, TEST, strict=True) if row["label"] in group) / 4
        for group in found.tasks
    ]
    assert list(found.accuracy[-1]) == by_task
    assert found.accuracy[0][0] > 0.5


def test_answers_may_be_kept_to_the_classes_seen_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def later(self: sp.TunedPrompt, rows: Any, **options: Any) -> Any:
        shares = {"red": 0.3, "blue": 0.1, "green": 0.5, "grey": 0.1}
        return [sp.ClassPrediction("green", shares) for _ in rows]

    monkeypatch.setattr(sp.TunedPrompt, "predict", later)
    assert run(sp.VPT(length=1)).accuracy == ((0.0,), (0.0, 0.5))
    found = run(sp.VPT(length=1), answers="seen")
    assert found.accuracy == ((0.5,), (0.0, 0.5))
    assert found.metrics == {
        "final_average": 0.25, "incremental_average": 0.375, "learning_accuracy": 0.5,
        "forgetting": 0.5, "backward_transfer": -0.5,
    }  # fmt: skip


def test_rehearsed_rows_are_trained_on_again_and_their_classes_compete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fits = Fits(monkeypatch)
    found = run(sp.VPT(length=1), rehearsal=Rehearsal(size=1))
    assert sorted(fits.rows[1]) == ["blue", *["green"] * 4, *["grey"] * 4, "red"]
    assert [(r["rows"], r["rehearsed"]) for r in found.stages] == [(8, 0), (10, 2)]
    assert fits.prompts[1].task.loss_labels == ("red", "blue", "green", "grey")  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", [sp.VPT(length=2, projection=4), sp.BitFit(), sp.LinearProbe()], ids=repr)
def test_a_killed_study_resumes_with_its_task_and_ends_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method
) -> None:
    settings: dict[str, Any] = {"tasks": [["red", "grey"], ["blue", "green"]], "rehearsal": Rehearsal(size=1)}
    whole = run(method, **settings)
    Fits(monkeypatch, killed_in=1)
    with pytest.raises(KeyboardInterrupt):
        run(method, tmp_path / "study", **settings)
    fits = Fits(monkeypatch)
    found = run(method, tmp_path / "study", **settings)
    assert len(fits.rows) == 1
    assert_close(found.prompt.state(), whole.prompt.state(), rtol=0, atol=0)
    assert (found.accuracy, found.tasks, found.metrics) == (whole.accuracy, whole.tasks, whole.metrics)
    assert sorted(p.name for p in (tmp_path / "study").iterdir()) == [
        "prompt",
        "stages.json",
        "state-2.safetensors",
    ]

    again = run(method, tmp_path / "study", **settings)
    assert len(fits.rows) == 1
    assert again.accuracy == found.accuracy
    assert again.stages == tuple(json.loads(json.dumps(found.stages)))
    labels = [p.label for p in again.prompt.predict(TEST)]
    assert labels == [p.label for p in found.prompt.predict(TEST)]


def test_a_study_that_was_killed_while_it_wrote_makes_its_task_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    whole = run(sp.LinearProbe())
    Fits(monkeypatch, killed_in=1)
    with pytest.raises(KeyboardInterrupt):
        run(sp.LinearProbe(), tmp_path)
    Fits(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "write_object", killed)
        with pytest.raises(KeyboardInterrupt):
            run(sp.LinearProbe(), tmp_path)
    assert {path.name for path in tmp_path.glob("state-*")} == {"state-1.safetensors", "state-2.safetensors"}
    found = run(sp.LinearProbe(), tmp_path)
    assert_close(found.prompt.state(), whole.prompt.state(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.glob("state-*")] == ["state-2.safetensors"]


def test_a_folder_of_another_study_and_a_damaged_state_are_refused(tmp_path: Path) -> None:
    method = sp.VPT(length=1)
    run(method, tmp_path)
    with pytest.raises(ValueError, match=r"a study with other settings \(method\)"):
        run(sp.VPT(length=2), tmp_path)
    with pytest.raises(ValueError, match=r"a study with other settings \(logits, rehearsal\)"):
        run(method, tmp_path, logits="all", rehearsal=Rehearsal(size=2))
    state = tmp_path / "state-2.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    with pytest.raises(sp.CheckpointError, match=r"state-2\.safetensors is damaged"):
        run(method, tmp_path)
    state.unlink()
    with pytest.raises(sp.CheckpointError, match=r"state-2\.safetensors is missing"):
        run(method, tmp_path)


def test_joint_training_sees_all_classes_at_once_and_its_test_rows_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = Fits(monkeypatch)
    arguments = (vision_backbone(), TASK, sp.LinearProbe(), TRAIN, TEST)
    record = joint_training(*arguments, file=tmp_path / "joint.json", **LONGER)
    assert len(fits.rows[0]) == len(TRAIN)
    assert record["rows"] == [4, 4]
    assert record["final_average"] == sum(record["accuracy"]) / 2 > 0.5
    assert joint_training(*arguments, file=tmp_path / "joint.json", **LONGER) == record
    assert len(fits.rows) == 1


def test_texts_come_in_tasks_too() -> None:
    words = {"film": "a", "dog": "b", "house": "c", "river": "d"}
    rows = [{"text": f"{word}{end}", "label": label} for word, label in words.items() for end in ("", " now")]
    task = sp.SequenceClassification("{text}", labels=list("abcd"))
    found = class_incremental_run(tiny_backbone(), task, sp.PromptTuning(length=2), rows, rows, **QUICK)
    assert found.tasks == (("a", "b"), ("c", "d"))
    assert [len(row) for row in found.accuracy] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tasks": [["red", "blue"], ["green"]]}, "must be in exactly one"),
        ({"tasks": [["red", "blue"], ["green", "grey", "red"]]}, "must be in exactly one"),
        ({"tasks": [["red", "blue"], ["green", "grey"]], "order_seed": 1}, "give only one of the two"),
        ({"tasks": 4}, r"in task 0 only \['red'\] competes"),
        ({"tasks": 4, "logits": "seen"}, r"in task 0 only \['red'\] competes"),
    ],
)
def test_tasks_that_cannot_be_learned_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run(sp.VPT(length=1), **settings)


def test_a_task_without_rows_and_one_without_a_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task 1 .* has 8 training rows and 0 test rows"):
        class_incremental_run(vision_backbone(), TASK, sp.VPT(length=1), TRAIN, TEST[:2], **QUICK)
    words: Any = sp.TextClassification("{text}", labels={"a": " a", "b": " b"})
    with pytest.raises(ValueError, match="text-classification has no head over all classes"):
        class_incremental_run(tiny_backbone(), words, sp.PromptTuning(length=1), TRAIN, TEST, **QUICK)
