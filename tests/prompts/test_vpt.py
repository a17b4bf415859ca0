"""VPT against its equations, and the numbers that its paper gives."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import VPT, ImageClassification, SequenceClassification, TunedPrompt, fit, load
from softprompt.backbones.base import BackboneSpec
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.images import POOLINGS, ImageSetting
from softprompt.outputs import EncodedRow
from softprompt.prompts.base import BuildContext
from softprompt.prompts.vpt import VisualPrompts
from tests.naive import vision as naive
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import LAYERS, PATCHES, ROWS, RULE, TASK, WIDTH, images, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}

SETTINGS = {
    "shallow": VPT(length=3, deep=False),
    "shallow, projected": VPT(length=3, deep=False, projection=5),
    "deep": VPT(length=3),
    "deep, projected": VPT(length=3, projection=5),
    "first": VPT(length=3, first_layers=2),
    "first, dropped": VPT(length=3, first_layers=2, dropped_after=True),
    "only the first": VPT(length=3, first_layers=1),
    "last": VPT(length=3, last_layers=2),
    "shared": VPT(length=3, shared=True),
    "shared, first": VPT(length=3, shared=True, first_layers=2, projection=5),
}
each_setting = pytest.mark.parametrize("method", SETTINGS.values(), ids=SETTINGS)


def vit_b16() -> BackboneSpec:
    """Facts of ViT-B/16, without its weights."""
    spec = vision_backbone().spec
    image = ImageSetting(RULE, (16, 16), ("class",), "class")
    return replace(spec, width=768, layers=12, image=image)


def built(method: VPT, spec: BackboneSpec, seed: int = 0) -> VisualPrompts:
    module = method.build(BuildContext(spec, generator=torch.Generator().manual_seed(seed)))
    assert isinstance(module, VisualPrompts)
    return module


def rows_of(pixels: Tensor) -> list[EncodedRow]:
    return [EncodedRow((), read=(POOLINGS.index("class"),), media=image) for image in pixels]


def as_the_paper_says(method: VPT, module: VisualPrompts, backbone: VisionBackbone, pixels: Tensor) -> Tensor:
    prompts: Tensor = module.prompts
    if module.projection is not None:
        prompts = prompts @ module.projection.weight.T + module.projection.bias
    told: dict[str, Any] = {}
    if not method.deep:
        told = {"shallow": prompts[0]}
    else:
        numbers = list(range(method.first_layers or method.last_layers or LAYERS))
        each = [prompts[0 if method.shared else i] for i in numbers]
        if method.last_layers:
            told = {"deep": [None] * (LAYERS - len(each)) + each}
        elif method.first_layers and not method.dropped_after:
            told = {
                "deep": each[:-1] + [None] * (LAYERS - len(each) + 1),
                "shallow": each[-1],
                "entry": len(each) - 1,
            }
        else:
            told = {"deep": each + [None] * (LAYERS - len(each))}
    return torch.stack([naive.state(backbone.model, x, PATCHES, **told) for x in pixels])


@each_setting
@pytest.mark.parametrize("tower", ["vit", "clip"])
def test_states_and_gradients_are_those_of_the_equations(method: VPT, tower: Any) -> None:
    backbone, pixels = vision_backbone(tower), images(2)
    module = built(method, backbone.spec).double()
    found = backbone.states(rows_of(pixels), module())
    expected = as_the_paper_says(method, module, backbone, pixels)
    assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(found)
    parameters = list(module.parameters())
    got = torch.autograd.grad((found * weights).sum(), parameters)
    want = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)
        assert one.abs().sum() > 0


@each_setting
def test_the_baked_and_restored_prompt_says_the_same(method: VPT) -> None:
    backbone, pixels = vision_backbone(), images(2)
    module = built(method, backbone.spec).double()
    tensors = module.bake().state_dict()
    assert set(tensors) == {"prompts"}
    again = method.restore(backbone.spec, tensors).double()
    expected = backbone.states(rows_of(pixels), module())
    # The baked prompt is float32.
    assert_close(backbone.states(rows_of(pixels), again()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "numbers"),
    [
        (VPT(length=50, deep=False), 38_400),
        (VPT(length=50), 460_800),
        (VPT(length=100), 921_600),
        (VPT(length=10, shared=True), 7_680),
        (VPT(length=10, first_layers=9), 69_120),
        (VPT(length=50, projection=64), 12 * 50 * 64 + 64 * 768 + 768),
    ],
)
def test_as_many_numbers_are_trained_as_the_paper_counts(method: VPT, numbers: int) -> None:
    assert sum(p.numel() for p in built(method, vit_b16()).parameters()) == numbers


@pytest.mark.parametrize(("projection", "bound"), [(None, 0.0625), (32, math.sqrt(6 / 800))])
def test_prompts_start_uniform_within_the_bound_of_the_paper(projection: int | None, bound: float) -> None:
    prompts = built(VPT(length=100, projection=projection), vit_b16()).prompts
    assert 0.999 * bound < prompts.abs().max().item() <= bound
    assert prompts.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_the_projection_starts_as_kaimings() -> None:
    module = built(VPT(projection=64), vit_b16())
    assert module.projection is not None
    assert module.projection.weight.std().item() == pytest.approx(math.sqrt(2 / 768), rel=0.02)
    assert not module.projection.bias.any()


def test_the_start_is_the_seeds() -> None:
    spec = vision_backbone().spec
    assert torch.equal(built(VPT(), spec, 1).prompts, built(VPT(), spec, 1).prompts)
    assert not torch.equal(built(VPT(), spec, 1).prompts, built(VPT(), spec, 2).prompts)


@pytest.mark.parametrize("mask", ["row", "batch"])
def test_dropout_has_a_mask_for_each_image_or_one_for_all(mask: Any) -> None:
    backbone = vision_backbone()
    module = built(VPT(length=6, dropout=0.5, dropout_mask=mask), backbone.spec).double()
    twice = images(1).expand(2, -1, -1, -1)
    one, other = backbone.states(rows_of(twice), module())
    assert torch.allclose(one, other) == (mask == "batch")
    again = backbone.states(rows_of(twice), module())
    assert not torch.allclose(again[0], one)
    with torch.no_grad():
        calm = [backbone.states(rows_of(twice), m())[0] for m in (module, module, module.bake().double())]
    assert torch.equal(calm[0], calm[1])
    assert_close(calm[2], calm[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"deep": False, "first_layers": 2},
        {"deep": False, "shared": True},
        {"first_layers": 2, "last_layers": 1},
        {"dropped_after": True},
        {"length": 0},
        {"lenght": 3},
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^VPT"):
        VPT(**settings)


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="in 4 layers, the backbone has 3"):
        fit(vision_backbone(), TASK, VPT(first_layers=4), ROWS, progress=False)


def test_on_text_it_is_not_defined() -> None:
    task = SequenceClassification("{text}", labels=["neg", "pos"])
    with pytest.raises(ValueError, match="for text take PromptTuning"):
        fit(tiny_backbone(), task, VPT(), TEXTS, progress=False)


# --- with everything else ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:every validation:softprompt.SoftpromptWarning")
@pytest.mark.parametrize(
    ("tower", "method"),
    [("vit", VPT(length=2, projection=4, dropout=0.1)), ("siglip", VPT(length=2, deep=False))],
)
def test_a_prompt_is_learned_saved_and_loaded(tower: Any, method: VPT, tmp_path: Path) -> None:
    backbone = vision_backbone(tower, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    start = built(method, backbone.spec)
    tuned = fit(
        backbone,
        TASK,
        method,
        ROWS,
        ROWS,
        steps=40,
        batch_size=8,
        learning_rate=0.02,
        warmup=0,
        progress=False,
    )
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    assert not any(module.training for module in backbone.model.modules())
    moved = tuned.module.state_dict()["prompts"] - start.bake().state_dict()["prompts"]
    assert (moved != 0).all()

    again = load(tuned.save(tmp_path / "prompt"), backbone)
    inputs = [row["image"] for row in ROWS]
    assert again.predict(inputs) == tuned.predict(inputs)
    assert [p.label for p in again.predict(inputs)] == [row["label"] for row in ROWS]
    assert again.recipe["trained_parameters"] == sum(p.numel() for p in start.parameters()) + 2 * WIDTH + 2


def test_predictions_do_not_depend_on_the_rest_of_the_batch() -> None:
    backbone = vision_backbone()
    module = built(VPT(length=3), backbone.spec).double()
    head = VPT().head(WIDTH, 2, torch.Generator()).double()
    tuned = TunedPrompt(backbone, TASK, VPT(length=3), module, head=head)
    together = tuned.predict([row["image"] for row in ROWS])
    for row, expected in zip(ROWS, together, strict=True):
        (alone,) = tuned.predict([row])
        assert_equal_up_to_rounding(alone, expected, torch.float64)


def test_a_run_that_is_resumed_ends_bit_identical(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "progress": False, "checkpoint_every": 2}
    method = VPT(length=2, dropout=0.2)
    backbone = vision_backbone(dtype=torch.float32)
    whole = fit(backbone, TASK, method, ROWS, steps=6, **settings)

    from softprompt.training.progress import Record, Silent

    class Stopping(Silent):
        def update(self, record: Record) -> None:
            if record.step == 4:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(backbone, TASK, method, ROWS, steps=6, **{**settings, "progress": Stopping()}, folder=tmp_path)
    resumed = fit(backbone, TASK, method, ROWS, steps=6, **settings, folder=tmp_path)
    for name, tensor in whole.trained().items():
        assert torch.equal(tensor, resumed.trained()[name]), name


def test_other_images_are_another_run(tmp_path: Path) -> None:
    from softprompt import CheckpointError

    backbone = vision_backbone(dtype=torch.float32)
    fit(backbone, TASK, VPT(length=2), ROWS, steps=2, progress=False, folder=tmp_path)
    others = [{**row, "image": row["image"].rotate(180)} for row in ROWS]
    with pytest.raises(CheckpointError):
        fit(backbone, TASK, VPT(length=2), others, steps=2, progress=False, folder=tmp_path)


def test_a_pooling_of_the_task_is_what_the_head_is_given() -> None:
    backbone = vision_backbone()
    for pooling in ("class", "mean", "mean-with-prompts"):
        task = ImageClassification(labels=["red", "blue"], pooling=pooling)
        module = built(VPT(length=3), backbone.spec).double()
        tuned = TunedPrompt(backbone, task, VPT(length=3), module, head=torch.nn.Linear(WIDTH, 2).double())
        row = tuned.encoder.encode(ROWS[0])
        found = tuned.model.states([row])
        assert row.media is not None
        mean, std = (
            torch.tensor(RULE.mean)[:, None, None].double(),
            torch.tensor(RULE.std)[:, None, None].double(),
        )
        image = (row.media.double() / 255 - mean) / std
        expected = naive.state(backbone.model, image, PATCHES, deep=[*module.prompts], read=pooling)
        assert_close(found[0], expected, rtol=1e-6, atol=1e-6)
