"""predict and inspect on image files and folders of them, and what they say of files that are no images."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import softprompt as sp
from softprompt.errors import SoftpromptWarning
from tests.cli.runs import as_json, softprompt
from tests.cli.test_cli_verbs import Page
from tests.tiny.vision import LAYERS, ROWS, SIZE, Tower, picture, tiny_tower

CPU = ("--dtype", "float32", "--device", "cpu")


def write_tower(folder: Path, tower: Tower = "vit") -> Path:
    tiny_tower(tower, dtype=torch.float32).save_pretrained(folder)
    rule = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    rule |= {"do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(rule))
    return folder


def prompt_on(folder: Path, tower: Tower) -> Path:
    """A prompt that was trained for a step or two, saved beside its backbone."""
    backbone = sp.load_backbone(str(write_tower(folder / "backbone", tower)), dtype="float32", device="cpu")
    task = sp.ImageClassification(labels=["red", "blue", "<b>green</b>"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SoftpromptWarning)  # no row is green, and two steps learn little
        tuned = sp.fit(backbone, task, sp.VPT(length=2), ROWS, steps=2, batch_size=4, progress=False)
    return tuned.save(folder / "prompt")


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompt_on(tmp_path_factory.mktemp("vit"), "vit")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    picture(180, 80, 90).save(folder / "b & c.png")
    picture(90, 80, 180, seed=1).save(folder / "in" / "a.jpg")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predict_takes_image_files_and_folders(prompt: Path, photos: Path) -> None:
    backbone = sp.load_backbone(str(prompt.parent / "backbone"), dtype="float32", device="cpu")
    files = [str(photos / "b & c.png"), str(photos / "in" / "a.jpg")]
    expected = sp.load(prompt, backbone).predict(files)
    for arguments in (files, [photos]):
        found = as_json("predict", prompt, *arguments, *CPU)["predictions"]
        assert [row["input"] for row in found] == files
        assert [row["label"] for row in found] == [p.label for p in expected]
        assert found[0]["probabilities"] == pytest.approx(expected[0].probabilities)
    lines = "".join(f"{file}\n" for file in files)
    assert as_json("predict", prompt, "-", *CPU, stdin=lines)["predictions"] == found


def test_many_labels_are_cut_short_for_people_only(tmp_path: Path, photos: Path) -> None:
    backbone = sp.load_backbone(str(write_tower(tmp_path / "backbone")), dtype="float32", device="cpu")
    labels = [f"kind {i}" for i in range(9)]
    rows = [{"image": picture(20 * i, 0, 0), "label": label} for i, label in enumerate(labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SoftpromptWarning)
        tuned = sp.fit(
            backbone, sp.ImageClassification(labels=labels), sp.VPT(length=1), rows, steps=1, progress=False
        )
    tuned.save(tmp_path / "prompt")
    result = softprompt("predict", tmp_path / "prompt", photos / "b & c.png", *CPU)
    assert "and 4 more" in " ".join(result.stdout.split())
    [row] = as_json("predict", tmp_path / "prompt", photos / "b & c.png", *CPU)["predictions"]
    assert set(row["probabilities"]) == set(labels)


@pytest.mark.slow
def test_inspect_shows_what_images_are_taken_for_and_where_attention_goes(
    prompt: Path, photos: Path, tmp_path: Path
) -> None:
    html = tmp_path / "page.html"
    found = as_json("inspect", prompt, photos, "--html", html, "--top", "2", *CPU)
    assert found["size"] == [SIZE, SIZE]
    assert found["learned"][0]["name"] == "prompts"
    assert found["learned"][0]["shape"] == [LAYERS, 2, 32]
    predictions = as_json("predict", prompt, photos, *CPU)["predictions"]
    for image, row in zip(found["images"], predictions, strict=True):
        assert image["image"] == row["input"]
        assert image["probabilities"] == pytest.approx(row["probabilities"])
        assert [len(values) for values in image["attention"].values()] == [LAYERS] * 3
    text = html.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    page = Page(text)
    assert page.open == []
    assert "<b>green" not in text
    pictures = [attributes for _, attributes in page.tags if "src" in attributes]
    assert len(pictures) == 2 * (1 + LAYERS)  # the image and its attention in each layer, twice
    for attributes in pictures:
        content = str(attributes["src"]).removeprefix("data:image/png;base64,")
        Image.open(io.BytesIO(base64.b64decode(content))).verify()
    told = " ".join(str(attributes.get("alt")) for _, attributes in page.tags)
    assert "b & c.png as the backbone saw it" in told
    assert "attention of the class token" in told
    meters = [attributes for tag, attributes in page.tags if tag == "meter"]
    assert len(meters) == 2 * 2  # two labels for each image
    assert all(attributes["aria-label"] for attributes in meters)


@pytest.mark.slow
def test_a_folder_with_the_name_of_a_label_gives_the_right_label(prompt: Path, tmp_path: Path) -> None:
    for name in ("red", "holiday"):
        (tmp_path / name).mkdir()
        picture(180, 80, 90).save(tmp_path / name / "a.png")
    found = as_json("inspect", prompt, tmp_path / "red", tmp_path / "holiday", *CPU)
    assert [image["right"] for image in found["images"]] == ["red", None]
    assert found["metrics"]["rows"] == 1


def test_inspect_without_images_says_what_was_learned(prompt: Path, tmp_path: Path) -> None:
    result = softprompt("inspect", prompt, "--html", tmp_path / "page.html", *CPU)
    assert result.exit_code == 0
    assert f"prompts {LAYERS} x 2 x 32" in result.stdout
    assert "give images" in result.stdout
    assert "No images were given" in (tmp_path / "page.html").read_text()


def test_inspect_prints_labels_and_attention(prompt: Path, photos: Path) -> None:
    result = softprompt("inspect", prompt, photos / "b & c.png", *CPU)
    assert result.exit_code == 0
    flat = " ".join(result.stdout.split())
    assert "<b>green</b>" in flat
    assert "patches" in flat


def test_a_tower_without_class_token_is_inspected_without_attention(tmp_path: Path, photos: Path) -> None:
    folder = prompt_on(tmp_path / "siglip", "siglip")
    found = as_json("inspect", folder, photos, "--html", tmp_path / "page.html", *CPU)
    assert "has no class token" in found["no_attention"]
    assert [image["attention"] for image in found["images"]] == [None, None]
    assert (tmp_path / "page.html").read_text().count("<img") == 2


def test_images_for_a_prompt_about_text_are_refused(trained: Path, photos: Path) -> None:
    result = softprompt("inspect", trained, photos / "b & c.png", *CPU)
    assert result.exit_code == 1
    assert "asks about no images" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["predict", "inspect"])
def test_what_is_no_image_is_named_and_nothing_is_answered(prompt: Path, tmp_path: Path, verb: str) -> None:
    picture(1, 2, 3).save(tmp_path / "fine.png")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "fine.png").read_bytes()[:-60])
    (tmp_path / "folder").mkdir()
    for name, said in {
        "empty.png": "the image is empty (0 bytes)",
        "text.png": "no image that Pillow can read",
        "cut.png": "damaged or cut off",
        "none.png": "there is no image or folder",
        "folder": "holds no image",
    }.items():
        result = softprompt(verb, prompt, tmp_path / "fine.png", tmp_path / name, *CPU)
        assert result.exit_code == 1
        message = " ".join(result.stderr.split())
        assert str(tmp_path / name) in message
        assert said in message
        assert "Traceback" not in result.output


def test_unusual_images_are_answered_like_usual_ones(prompt: Path, tmp_path: Path) -> None:
    """Greyscale, alpha, 16 bit, one pixel, and a photograph held upright."""
    grey = np.random.default_rng(0).integers(0, 256, (8, 12), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    coloured = Image.fromarray(np.dstack([grey] * 3))
    opaque = Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)]))
    turned = coloured.rotate(90, expand=True)  # the camera's way of storing it; EXIF says to turn it back
    coloured.save(tmp_path / "rgb.png")
    same = {
        "grey.png": Image.fromarray(grey),
        "alpha.png": opaque,
        "wide.png": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in same.items():
        image.save(tmp_path / name)
    turned.save(tmp_path / "turned.png", exif=exif)
    picture(200, 0, 0, (1, 1)).save(tmp_path / "one.png")
    names = ["rgb.png", *same, "turned.png", "one.png"]
    answers = as_json("predict", prompt, *(tmp_path / name for name in names), *CPU)["predictions"]
    for answer in answers[1:-1]:
        assert answer["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    assert sum(answers[-1]["probabilities"].values()) == pytest.approx(1)
