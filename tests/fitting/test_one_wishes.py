"""What fit takes beside rows: metrics, callbacks, weights of classes, words for labels, names of other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.fitting.run_config import parse_config
from softprompt.outputs import EncodedRow
from softprompt.tasks.classes import class_losses
from softprompt.training.progress import Record
from tests.tiny.task import ROWS, TASK, tiny_backbone

METHOD = sp.PromptTuning(length=2)
pytestmark = pytest.mark.filterwarnings("ignore:every validation row was given:softprompt.SoftpromptWarning")


def test_a_metric_of_the_user_decides_what_is_best() -> None:
    values = iter([3.0, 1.0, 2.0])
    tuned = sp.fit(
        tiny_backbone(),
        TASK,
        METHOD,
        ROWS,
        ROWS,
        steps=3,
        evaluate_every=1,
        metrics={"cost": lambda predictions, rows: next(values)},
        main_metric="cost",
        greater_is_better=False,
        progress=False,
    )
    assert tuned.recipe["best_step"] == 2
    assert tuned.metrics["validation"]["cost"] == 1.0
    found = tuned.evaluate(
        ROWS, metrics={"first": lambda predictions, rows: predictions[0].label == TASK.read_label(rows[0])}
    )
    assert found["first"] in (0.0, 1.0)
    with pytest.raises(ValueError, match="metrics has 'accuracy', which text-classification has already"):
        tuned.evaluate(ROWS, metrics={"accuracy": lambda predictions, rows: 0.0})


class Watching(sp.Callback):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_step(self, record: Record) -> str | None:  # type: ignore[override]
        self.seen.append(f"step {record.step}")
        return "stop" if record.step == 2 else None

    def on_evaluate(self, record: Record, *, is_best: bool) -> None:
        self.seen.append(f"evaluated {record.step} {is_best}")

    def on_save(self, step: int, folder: Path) -> None:
        self.seen.append(f"saved {step} {(folder / 'checkpoint.safetensors').exists()}")


def test_a_callback_is_told_and_stops_the_run(tmp_path: Path) -> None:
    watching = Watching()
    tuned = sp.fit(
        tiny_backbone(),
        TASK,
        METHOD,
        ROWS,
        ROWS,
        steps=50,
        folder=tmp_path,
        callbacks=[watching],
        progress=False,
    )
    assert tuned.recipe["steps_made"] == 2
    assert watching.seen == ["step 1", "step 2", "evaluated 2 True", "saved 2 True"]


def test_epochs_become_steps() -> None:
    recipe = sp.Recipe(epochs=3, batch_size=16, evaluate_every=400)
    with pytest.raises(ValueError, match="evaluate_every is 400 and steps is 6"):
        recipe.in_steps(17)
    assert recipe.in_steps(1700 * 2).steps == 3 * 213
    with pytest.raises(ValueError, match="steps is 10 and epochs is 3: give one of them"):
        sp.Recipe(steps=10, epochs=3)


def test_balanced_weights_let_every_label_weigh_the_same() -> None:
    task = sp.SequenceClassification("{text}", labels=["a", "b"], class_weights="balanced")
    rows = [{"text": "x", "label": label} for label in "aaab"]
    assert task.for_rows(rows).class_weights == {"a": 4 / 6, "b": 2.0}
    with pytest.raises(ValueError, match=r"class_weights has \['c'\], which are not among the labels"):
        sp.SequenceClassification("{text}", labels=["a", "b"], class_weights={"c": 1})
    two = [EncodedRow((1,), read=(0,), answer=(k,)) for k in (0, 1)]
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    plain = class_losses(logits, two, ["a", "b"], None)
    torch.testing.assert_close(
        class_losses(logits, two, ["a", "b"], None, {"b": 3.0}), plain * torch.tensor([1.0, 3.0])
    )


def test_labels_alone_get_words() -> None:
    task = sp.TextClassification("{text}\nMood:", labels=["POSITIVE", "NEGATIVE"])  # type: ignore[arg-type]
    assert task.labels == {"POSITIVE": " positive", "NEGATIVE": " negative"}
    with pytest.warns(sp.SoftpromptWarning, match="the words of the labels are a guess"):
        sp.TextClassification("{text}\nMood:", labels=[0, 1, 2])  # type: ignore[arg-type]


def test_names_of_other_libraries_are_told_what_they_are_here() -> None:
    with pytest.raises(ValueError, match="here it is 'learning_rate'"):
        sp.Recipe(lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(
        ValueError, match="PromptTuning has no setting 'num_virtual_tokens': here it is 'length'"
    ):
        sp.PromptTuning(num_virtual_tokens=5)  # type: ignore[call-arg]
    for name, here in (
        ("num_train_epochs", "epochs"),
        ("eval_dataset", "validation"),
        ("output_dir", "folder"),
    ):
        with pytest.raises(ValueError, match=f"a recipe has no setting '{name}'; here it is '{here}'"):
            sp.fit(tiny_backbone(), TASK, METHOD, ROWS, **{name: 1})


def test_the_same_in_a_config() -> None:
    values: dict[str, Any] = {
        "backbone": "a",
        "method": {"name": "prompt-tuning"},
        "data": {"train": "a.csv"},
    }
    values["task"] = {"name": "text-classification", "template": "{text}:", "labels": ["good", "bad"]}
    assert parse_config({**values, "recipe": {"epochs": 2}}).recipe.epochs == 2
    with pytest.raises(
        ValueError, match=r"unknown key 'recipe.per_device_train_batch_size'; here it is 'batch_size'"
    ):
        parse_config({**values, "recipe": {"per_device_train_batch_size": 2}})
    with pytest.raises(ValueError, match=r"unknown key 'method.num_virtual_tokens'; here it is 'length'"):
        parse_config({**values, "method": {"name": "prompt-tuning", "num_virtual_tokens": 2}})
