"""Image classification as a task, and with the methods that are not made for images in particular."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softprompt import (
    VPT,
    Adapter,
    BitFit,
    FullTuning,
    ImageClassification,
    LinearProbe,
    LoRA,
    MixedPrompts,
    MLPProbe,
    PromptTuning,
    PTuningV2,
    SequenceClassification,
    SoftpromptWarning,
    WrongBackboneError,
    ZeroShot,
    fit,
    load,
)
from softprompt.images import POOLINGS, ImageRule
from softprompt.tasks import TASKS
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import TASK as WORDS_TASK
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import PATCH, ROWS, RULE, SIZE, TASK, picture, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}
quiet = pytest.mark.filterwarnings("ignore:every validation:softprompt.SoftpromptWarning")


def test_a_row_is_its_pixels_and_what_is_read_of_them() -> None:
    setting = vision_backbone().spec.image
    assert setting is not None
    row = TASK.bind(setting).encode({"image": picture(200, 0, 0), "label": "blue"})
    assert not row.context
    assert row.read == (POOLINGS.index("class"),)
    assert row.answer == (1,)
    assert row.media is not None
    assert (row.media.shape, row.media.dtype) == ((3, SIZE, SIZE), torch.uint8)
    assert TASK.bind(setting).encode({"image": picture(200, 0, 0)}, answer=False).answer == ()


def test_columns_and_labels_may_be_called_otherwise() -> None:
    task = ImageClassification(
        labels=["red", "blue"],
        columns={"image": "img"},
        label_column="y",
        label_values={"0": "red", "1": "blue"},
    )
    setting = vision_backbone().spec.image
    assert setting is not None
    assert task.bind(setting).encode({"img": picture(1, 2, 3), "y": 1}).answer == (1,)
    assert TASKS[task.name] is ImageClassification
    assert task.render({"img": Path("a/b.png"), "y": 0}) == "a/b.png\nred"
    assert task.render({"img": picture(1, 2, 3)}, answer=False) == "<Image>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["one"]}, "two or more"),
        ({"labels": ["a", "b"], "label_values": {"0": "c"}}, "not among the labels"),
        ({"labels": ["a", "b"], "columns": {"picture": "img"}}, "which the task does not read"),
        ({"labels": ["a", "b"], "image_size": 0}, "1 or more"),
        ({"labels": ["a", "b"], "pooling": "middle"}, "pooling"),
        ({"labels": ["a", "b"], "size": 3}, "size"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageClassification(**settings)


def test_a_task_is_refused_by_a_backbone_that_it_does_not_suit() -> None:
    with pytest.raises(
        ValueError, match=r"asks about images, and tiny/llama .* reads text: take a backbone that reads"
    ):
        fit(tiny_backbone(), TASK, PromptTuning(length=2), ROWS, **SHORT)
    for task in (WORDS_TASK, SequenceClassification("{text}", labels=["neg", "pos"])):
        with pytest.raises(ValueError, match=r"asks about text, and tiny/vit .* reads images"):
            fit(vision_backbone(), task, VPT(length=2), TEXTS, **SHORT)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (ImageClassification(labels=["red", "blue"], image_size=SIZE + 1), "set image_size to a multiple"),
        (ImageClassification(labels=["red", "blue"], pooling="pooler"), "can be read as"),
    ],
)
def test_a_task_that_asks_for_what_the_tower_does_not_have(task: ImageClassification, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(vision_backbone(), task, VPT(length=2), ROWS, **SHORT)


def test_a_size_that_the_positions_were_not_trained_for_must_be_asked_for() -> None:
    larger = dataclasses.replace(RULE, size=(SIZE + PATCH, SIZE))
    backbone = vision_backbone(rule=larger, dtype=torch.float32)
    with pytest.raises(
        ValueError, match=r"16 x 12 pixels, .* trained for 12 x 12: set image_size=\(16, 12\)"
    ):
        fit(backbone, TASK, VPT(length=2), ROWS, **SHORT)
    for size in ((SIZE + PATCH, SIZE), (SIZE, SIZE)):
        task = dataclasses.replace(TASK, image_size=size)
        tuned = fit(backbone, task, VPT(length=2), ROWS, **SHORT)
        assert tuned.encoder.encode(ROWS[0]).media.shape[1:] == size  # type: ignore[union-attr]
    dinov2 = vision_backbone("dinov2", rule=larger, dtype=torch.float32)  # interpolates unasked
    assert len(fit(dinov2, TASK, VPT(length=2), ROWS, **SHORT).predict([ROWS[0]["image"]])) == 1


def test_a_class_that_only_the_test_folder_has_is_named(tmp_path: Path) -> None:
    tuned = fit(vision_backbone(dtype=torch.float32), TASK, VPT(length=2), ROWS, **SHORT)
    for label in ("red", "blue", "green"):
        (tmp_path / "test" / label).mkdir(parents=True)
        picture(1, 2, 3).save(tmp_path / "test" / label / "0.png")
    with pytest.raises(ValueError, match="'green' is not among the labels"):
        tuned.evaluate(str(tmp_path), split="test")
    (tmp_path / "test" / "green" / "0.png").unlink()
    with pytest.raises(ValueError, match=r"class folder .*green holds no image"):
        tuned.evaluate(str(tmp_path), split="test")


def test_bad_rows_are_named() -> None:
    tuned = fit(vision_backbone(dtype=torch.float32), TASK, VPT(length=2), ROWS, **SHORT)
    with pytest.raises(ValueError, match="columns are"):
        tuned.predict([{"img": picture(1, 2, 3)}])
    with pytest.raises(ValueError, match="'green' is not among the labels"):
        tuned.evaluate([{"image": picture(1, 2, 3), "label": "green"}])
    with pytest.raises(FileNotFoundError, match=r"no/such\.png"):
        tuned.predict(["no/such.png"])


def test_a_label_without_training_rows_is_a_warning() -> None:
    task = ImageClassification(labels=["red", "blue", "green"])
    with pytest.warns(SoftpromptWarning, match=r"no training row has the labels \['green'\]"):
        fit(vision_backbone(dtype=torch.float32), task, VPT(length=2), ROWS, **SHORT)


def test_inputs_are_images_in_any_form(tmp_path: Path) -> None:
    tuned = fit(vision_backbone(dtype=torch.float32), TASK, VPT(length=2), ROWS, **SHORT)
    image = ROWS[0]["image"]
    path = tmp_path / "x.png"
    image.save(path)
    forms = [image, path, str(path), path.read_bytes(), np.array(image), {"image": image}]
    predictions = tuned.predict(forms)
    assert_equal_up_to_rounding(predictions, predictions[:1] * len(forms))


def test_the_image_size_is_saved_with_the_task(tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    task = ImageClassification(labels=["red", "blue"], image_size=(SIZE + PATCH, SIZE), pooling="mean")
    tuned = fit(backbone, task, VPT(length=2), ROWS, **SHORT)
    again = load(tuned.save(tmp_path / "p"), backbone)
    assert again.task == task
    row = again.encoder.encode(ROWS[0])
    assert row.media is not None
    assert row.media.shape == (3, SIZE + PATCH, SIZE)
    assert again.predict([ROWS[0]]) == tuned.predict([ROWS[0]])


def test_other_weights_and_other_preparation_are_another_backbone(tmp_path: Path) -> None:
    tuned = fit(vision_backbone(dtype=torch.float32), TASK, VPT(length=2), ROWS, **SHORT)
    folder = tuned.save(tmp_path / "p")
    with pytest.raises(WrongBackboneError, match="other weights"):
        load(folder, vision_backbone(dtype=torch.float32, seed=1))
    darker = ImageRule(RULE.size, (0.6, 0.6, 0.6), RULE.std, resample=2)
    with pytest.raises(WrongBackboneError, match="images prepared in another way"):
        load(folder, vision_backbone(dtype=torch.float32, rule=darker))


@pytest.mark.slow
@quiet
@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(length=3, init="uniform"),
        PTuningV2(length=3, init="random"),
        LinearProbe(),
        MLPProbe(),
        BitFit(),
        Adapter(),
        LoRA(targets=("q_proj", "v_proj")),
        FullTuning(),
    ],
    ids=lambda method: method.name,
)
def test_methods_that_need_no_words_work_on_images(method: Any, tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    tuned = fit(
        backbone, TASK, method, ROWS, ROWS, steps=30, warmup=0, head_learning_rate=0.05, progress=False
    )
    assert tuned.metrics["validation"]["accuracy"] > 0.9
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    early = fit(backbone, TASK, method, ROWS, steps=1, warmup=0, progress=False).trained()
    for name, tensor in tuned.trained().items():  # a head alone could separate the colours
        if "k_proj.bias" not in name:  # takes part in no softmax: its gradient is rounding
            assert not torch.equal(tensor, early[name]), name
    again = load(tuned.save(tmp_path / "p"), backbone)
    for one, other in zip(again.predict(ROWS), tuned.predict(ROWS), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_methods_that_start_from_words_say_so() -> None:
    with pytest.raises(ValueError, match="reads images and has no words"):
        fit(vision_backbone(), TASK, PromptTuning(length=2), ROWS, **SHORT)
    with pytest.raises(ValueError, match="has no words to answer with"):
        fit(vision_backbone(), TASK, ZeroShot(), ROWS, **SHORT)


def test_prompts_of_several_tasks_share_a_batch_of_images() -> None:
    backbone = vision_backbone()
    larger = ImageClassification(labels=["blue", "red", "grey"], image_size=SIZE + PATCH, pooling="mean")
    with pytest.warns(SoftpromptWarning, match="grey"):
        prompts = [
            fit(backbone, TASK, VPT(length=2, deep=False), ROWS, **SHORT),
            fit(backbone, larger, VPT(length=3, deep=False), ROWS, **SHORT),
        ]
    images = [row["image"] for row in ROWS[:3] for _ in prompts]
    found = MixedPrompts(prompts).predict(images, [0, 1] * 3)
    for image, which, prediction in zip(images, [0, 1] * 3, found, strict=True):
        (alone,) = prompts[which].predict([image])
        assert prediction.probabilities == pytest.approx(alone.probabilities, abs=1e-6)


@quiet
def test_a_folder_of_images_is_all_that_fit_needs(tmp_path: Path) -> None:
    for i, row in enumerate(ROWS):
        folder = tmp_path / row["label"]
        folder.mkdir(exist_ok=True)
        row["image"].save(folder / f"{i}.png")
    backbone = vision_backbone(dtype=torch.float32)
    tuned = fit(backbone, TASK, VPT(length=2), str(tmp_path), str(tmp_path), **SHORT)
    assert tuned.recipe["rows"] == len(ROWS)
    assert tuned.evaluate(str(tmp_path))["accuracy"] == tuned.metrics["validation"]["accuracy"]
