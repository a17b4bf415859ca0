"""Our pixels are those of transformers' image processors, or an error names what no rule says."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

import softprompt as sp
from softprompt.backbones.dual.backbone import DualBackbone
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.backbones.vision.processors import former_rule_of, rule_of, rules_of
from softprompt.images import ImageRule, normalized, read_image, to_pixels
from tests.golden.runs import Seen
from tests.tiny.dual import dual_backbone
from tests.tiny.vision import ROWS, SIZE, TASK, tiny_tower

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")  # two steps learn little

CLOSE = 1e-6
"""In normalised units, which reach from about -2.1 to 2.7."""

CLASSES = {
    "vit": "ViT", "vit_mae": "ViT", "ijepa": "ViT", "vit_msn": "ViT", "clipseg": "ViT", "deit": "DeiT", "dinov2": "Bit",
    "dinov2_with_registers": "Bit", "pixio": "Bit", "clip": "CLIP", "clip_vision_model": "CLIP", "altclip": "CLIP",
    "metaclip_2": "CLIP", "metaclip_2_vision_model": "CLIP", "chinese_clip": "ChineseCLIP", "siglip": "Siglip",
    "siglip_vision_model": "Siglip", "beit": "Beit", "owlvit": "OwlViT", "blip": "Blip",
}  # fmt: skip
"""What a folder that names no class is read with, by the model's type."""

SIDES = [
    (640, 427),
    (427, 640),
    (333, 251),
    (500, 375),
    (224, 224),
    (1100, 41),
    (41, 1100),
    (57, 31),
    (1, 1),
    (3, 2),
]


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Soft shapes in large, medium and small, with a little noise, as in a photograph."""
    drawn = np.random.default_rng(seed)
    picture = drawn.normal(0, 3, (height, width, 3))
    for cells, weight in ((2, 70), (6, 35), (25, 15)):
        coarse = Image.fromarray(drawn.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        picture += (
            weight / 128 * (np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)) - 128.0)
        )
    return Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8))


def processor_of(kind: str, **settings: Any) -> Any:
    return get_image_processor_class_from_name(f"{kind}ImageProcessorPil")(**settings)


def theirs(processor: Any, image: Any) -> Tensor:
    found = processor(images=image, do_convert_rgb=True, return_tensors="pt")["pixel_values"]
    return torch.as_tensor(found).float()  # bytes, where they are neither scaled nor normalised


def ours(rule: ImageRule, image: Any) -> Tensor:
    return normalized(to_pixels(image, rule)[None], rule, torch.float32)


def alike(found: Tensor, expected: Tensor, atol: float = CLOSE) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "kind"), CLASSES.items())
def test_a_folder_that_says_nothing_has_the_pixels_of_its_models_processor(
    model_type: str, kind: str
) -> None:
    processor, rule = processor_of(kind), rule_of({}, model_type)
    assert rule == rule_of(processor, "any") == rule_of(processor.to_dict(), "any")
    assert rule == rule_of({"image_processor_type": f"{kind}ImageProcessorFast"}, "any")
    for number, (width, height) in enumerate(SIDES[:3]):
        image = photo(width, height, number)
        alike(ours(rule, image), theirs(processor, image))


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(CLASSES.values())))
@pytest.mark.parametrize("settings", [
    {},
    {"size": {"height": 60, "width": 84}, "crop_size": {"height": 48, "width": 80}, "do_center_crop": True},
    {"size": {"shortest_edge": 63}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True, "resample": 1},
], ids=["its own", "stretched and cut", "shortest edge"])  # fmt: skip
def test_pixels_are_theirs_on_photographs_of_every_shape(kind: str, settings: dict[str, Any]) -> None:
    processor = processor_of(kind, **settings)
    rule = rule_of(processor, "any")
    for number, (width, height) in enumerate(SIDES):
        image = photo(width, height, number)
        alike(ours(rule, image), theirs(processor, image))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "settings"), [
    ("ViT", {"do_rescale": False}),
    ("ViT", {"rescale_factor": 1 / 127.5}),
    ("ViT", {"do_normalize": False}),
    ("CLIP", {"do_normalize": False, "do_rescale": False}),
    ("ViT", {"image_mean": 0.4, "image_std": 0.2}),
    ("ViT", {"do_pad": True}),
    ("ViT", {"do_pad": True, "pad_size": {"height": 224, "width": 224}}),
    ("ViT", {"resample": 0, "size": 99}),
    ("ViT", {"crop_pct": 0.9}),
    ("CLIP", {"size": {"shortest_edge": 90, "longest_edge": 130}, "crop_size": 96}),
    ("CLIP", {"size": {"shortest_edge": 300, "longest_edge": 499}, "crop_size": 224}),
    ("CLIP", {"size": 70, "crop_size": 97}),
    ("CLIP", {"do_resize": False, "crop_size": {"height": 300, "width": 201}}),
    ("DeiT", {"size": 256, "crop_size": 224}),
    ("Beit", {"do_center_crop": True, "do_reduce_labels": True}),
    ("CLIP", {"use_square_size": True}),
], ids=str)  # fmt: skip
def test_settings_do_what_they_do_in_transformers(kind: str, settings: dict[str, Any]) -> None:
    processor = processor_of(kind, **settings)
    rule = rule_of({"image_processor_type": f"{kind}ImageProcessor", **settings}, "any")
    for number, (width, height) in enumerate(SIDES[:8]):
        image = photo(width, height, number)
        expected = theirs(processor, image)
        alike(ours(rule, image), expected, CLOSE * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize(("config", "model_type", "message"), [
    ({"do_resize": False}, "vit", "do_resize false"),
    ({"do_center_crop": False}, "clip", r"shortest_edge.* with do_center_crop false"),
    ({"size": {"shortest_edge": 9, "longest_edge": 12}, "do_center_crop": False}, "clip", "longest_edge"),
    ({"size": {"longest_edge": 3}}, "vit", "longest_edge|expected height and width"),
    ({"size": {"max_height": 9, "max_width": 9}}, "vit", "max_height"),
    ({"do_pad": True, "pad_size": {"height": 300, "width": 300}}, "vit", "do_pad=True, pad_size="),
    ({"image_mean": [0.5, 0.5]}, "vit", "image_mean is .* expected three numbers"),
    ({"rescale_factor": 0.0}, "vit", "rescale_factor"),
    ({}, "siglip2", "max_num_patches"),
    ({}, "owlv2", "do_pad=True"),
    ({}, "dinov3_vit", "'DINOv3ViTImageProcessor', which transformers does not have for Pillow"),
    ({}, "quux", "no image_processor_type, and there is none for 'quux'"),
    ({"image_processor_type": "MyImageProcessor"}, "vit", "'MyImageProcessor', which transformers does not have"),
    ({"image_processor_type": "MobileViTImageProcessor"}, "vit", "do_flip_channel_order=True"),
    ({"image_processor_type": "ConvNextImageProcessor"}, "vit", "do_center_crop|crop_pct"),
    ({"image_processor_type": "ConvNextImageProcessor", "crop_size": 224, "do_center_crop": True, "size": 224}, "vit",
     "crop_pct=0.875"),
    ({"image_processor_type": "EfficientNetImageProcessor"}, "vit", "rescale_offset=False, include_top=True"),
    ({"image_processor_type": "VivitImageProcessor", "offset": True}, "vit", "VivitImageProcessor"),
])  # fmt: skip
def test_what_no_rule_says_is_refused_by_the_name_of_its_setting(
    config: dict[str, Any], model_type: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        rules_of(config, (224, 224), model_type)
    assert "pass processor=ImageRule(...)" in str(caught.value)


def test_an_older_rule_is_offered_where_a_processor_is_refused() -> None:
    config = {
        "do_center_crop": False,
        "size": 84,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    with pytest.raises(ValueError, match=r"before.* is ImageRule\(size=\(84, 84\)"):
        rules_of(config, (224, 224), "clip")


def test_older_files_say_their_class_and_sizes_in_other_words() -> None:
    config = {
        "feature_extractor_type": "DeiTFeatureExtractor",
        "size": 256,
        "crop_size": 224,
        "do_center_crop": True,
    }
    assert rule_of(config, "vit") == rule_of({}, "deit")
    assert rule_of({"size": 224}, "clip") == rule_of({}, "clip")
    assert rule_of({"size": 384}, "vit").size == (384, 384)


def transparent(image: Image.Image) -> Image.Image:
    """Its upper half clear, fading."""
    return Image.merge("RGBA", [*image.split(), Image.linear_gradient("L").resize(image.size)])


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"]


@pytest.mark.parametrize("kind", ["CLIP", "ViT"])
@pytest.mark.parametrize("mode", [*MODES, "P with transparency", "RGB with transparency"])
def test_every_mode_of_pillow_becomes_red_green_and_blue_as_in_transformers(mode: str, kind: str) -> None:
    image = photo(75, 50)
    if mode == "P with transparency":
        content = io.BytesIO()
        image.convert("P").save(content, "png", transparency=image.convert("P").getpixel((0, 0)))
        image = Image.open(content)
    elif mode == "RGB with transparency":
        content = io.BytesIO()
        image.save(content, "png", transparency=image.getpixel((0, 0)))
        image = Image.open(content)
    else:
        image = (transparent(image) if mode in ("LA", "PA", "RGBA") else image).convert(mode)
        assert image.mode == mode
    processor = processor_of(kind)
    alike(ours(rule_of(processor, "any"), image), theirs(processor, image))


def test_sixteen_bits_are_the_same_picture_and_numbers_without_a_range_are_refused() -> None:
    """Pillow, and with it transformers, would cut everything above 255 off, and leave a white picture."""
    grey = photo(75, 50).convert("L")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert wide.mode == "I;16"
    processor = processor_of("CLIP")
    alike(ours(rule_of(processor, "any"), wide), theirs(processor, grey))
    with pytest.raises(ValueError, match="floating-point numbers"):
        to_pixels(Image.fromarray(np.asarray(grey).astype(np.float32)), rule_of(processor, "any"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_turned_as_their_exif_says_before_all_else(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    photo(90, 40).save(content, "png", exif=exif.tobytes())
    processor = processor_of("CLIP", size=32, crop_size=24)
    turned = ImageOps.exif_transpose(Image.open(content))
    assert turned.size == read_image(content.getvalue()).size
    alike(ours(rule_of(processor, "any"), content.getvalue()), theirs(processor, turned))


def test_a_processor_of_ones_own_is_read_by_what_it_does() -> None:
    class Own(get_image_processor_class_from_name("ViTImageProcessorPil")):  # type: ignore[misc]
        pass

    assert rule_of(Own(size=48), "vit").size == (48, 48)

    class Darker(Own):
        def rescale(self, image: Any, scale: float, **kwargs: Any) -> Any:
            return super().rescale(image, scale / 2)

    with pytest.raises(ValueError, match=r"a Darker with .* its pixels differ"):
        rule_of(Darker(size=48), "vit")


# --- what was trained on other pixels ----------------------------------------------------------------------

WRONG: dict[str, dict[str, Any]] = {
    "stretched, once cut": {"image_processor_type": "DeiTImageProcessor", "size": 16, "crop_size": SIZE},
    "rounded": {"image_processor_type": "CLIPImageProcessor", "size": 13, "crop_size": SIZE},
    "read right": {"image_processor_type": "ViTImageProcessor", "size": SIZE},
    "not rescaled": {"image_processor_type": "ViTImageProcessor", "size": SIZE, "do_rescale": False},
}
"""Settings that earlier versions read otherwise, but for one; SAID is said beside."""
SAID: dict[str, Any] = {
    "do_center_crop": True, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]
}  # fmt: skip


def config_of(name: str) -> dict[str, Any]:
    return {**SAID, "do_center_crop": WRONG[name]["size"] != SIZE, **WRONG[name]}


def backbones(name: str) -> tuple[VisionBackbone, VisionBackbone]:
    """As an earlier version made it, and as it is made now, around one model."""
    model = tiny_tower("vit", dtype=torch.float32).requires_grad_(False)
    former = former_rule_of(config_of(name), (SIZE, SIZE))
    assert former is not None
    return VisionBackbone(model, former, name="tiny"), VisionBackbone(model, config_of(name), name="tiny")


@pytest.mark.parametrize("name", ["stretched, once cut", "rounded", "not rescaled"])
def test_a_prompt_that_was_trained_on_former_pixels_still_answers_from_them(
    name: str, tmp_path: Path
) -> None:
    before, now = backbones(name)
    assert before.rule != now.rule
    tuned = sp.fit(before, TASK, sp.VPT(length=2), ROWS, steps=2, batch_size=4, warmup=0, progress=False)
    folder, inputs = tuned.save(tmp_path / "prompt"), [row["image"] for row in ROWS]
    with pytest.warns(sp.SoftpromptWarning, match="still reads them so, by ImageRule"):
        again = sp.load(folder, now)
    assert again.predict(inputs) == tuned.predict(inputs)
    assert again.backbone.model is now.model
    with pytest.warns(sp.SoftpromptWarning, match="still reads them so"):
        assert sp.load(folder, now.with_settings()).predict(inputs) == tuned.predict(inputs)
    twice = again.save(tmp_path / "again")
    assert (
        json.loads((twice / "prompt.json").read_text())["backbone"]
        == (json.loads((folder / "prompt.json").read_text())["backbone"])
    )
    fresh = sp.fit(now, TASK, sp.VPT(length=2), ROWS, steps=2, batch_size=4, warmup=0, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = sp.load(fresh.save(tmp_path / "fresh"), now)
    assert kept.predict(inputs) == fresh.predict(inputs)
    if name == "not rescaled":
        with pytest.raises(ValueError, match="different mean or std"):
            sp.MixedPrompts([again, kept])
    else:
        both = sp.MixedPrompts([again, kept]).predict(inputs[:2] * 2, [0, 0, 1, 1])
        assert [p.label for p in both] == [
            p.label for p in [*again.predict(inputs[:2]), *kept.predict(inputs[:2])]
        ]


def test_a_processor_that_was_read_right_keeps_its_fingerprint() -> None:
    before, now = backbones("read right")
    assert before.rule == ImageRule((SIZE, SIZE), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), resample=3)
    assert now.rule == before.rule
    assert now.former is None


@pytest.mark.parametrize("together", [False, True])
def test_a_run_that_was_begun_on_former_pixels_goes_on_with_them(together: bool, tmp_path: Path) -> None:
    before, now = backbones("stretched, once cut")
    recipe = sp.Recipe(steps=6, batch_size=4, warmup=0, evaluate_every=2, checkpoint_every=2)
    inputs = [row["image"] for row in ROWS]

    def trained(backbone: VisionBackbone, folder: Path, watcher: Any) -> list[sp.TunedPrompt]:
        if together:
            runs = [(sp.VPT(length=2), recipe), (sp.VPT(length=2), replace(recipe, seed=1))]
            return sp.fit_many(
                backbone, TASK, runs, ROWS, ROWS, folder=folder, progress=watcher and [watcher] * 2
            )
        return [
            sp.fit(
                backbone, TASK, sp.VPT(length=2), ROWS, ROWS, recipe=recipe, folder=folder, progress=watcher
            )
        ]

    whole = trained(before, tmp_path / "whole", False)
    with pytest.raises(KeyboardInterrupt):
        trained(before, tmp_path / "run", Seen(stop=4))
    seen = Seen()
    with pytest.warns(
        sp.SoftpromptWarning, match="was begun on images that an earlier version prepared otherwise"
    ):
        rest = trained(now, tmp_path / "run", seen)
    assert min(seen.begun) > 0
    for one, other in zip(whole, rest, strict=True):
        assert other.predict(inputs) == one.predict(inputs)


def test_a_dual_encoder_reads_former_pixels_too(tmp_path: Path) -> None:
    config, task = config_of("rounded"), sp.ImageTextClassification(labels=["red", "blue"])
    given = dual_backbone(dtype=torch.float32)
    former = former_rule_of(config, (SIZE, SIZE))
    before, now = (DualBackbone(given.model, given.tokenizer, rule, name="tiny") for rule in (former, config))
    tuned = sp.fit(before, task, sp.CoOp(length=2), ROWS, steps=2, batch_size=4, warmup=0, progress=False)
    folder, inputs = tuned.save(tmp_path / "prompt"), [row["image"] for row in ROWS]
    with pytest.warns(sp.SoftpromptWarning, match="still reads them so"):
        again = sp.load(folder, now.with_settings())
    assert again.predict(inputs) == tuned.predict(inputs)
