"""Images in every form that a row may hold, folders of them, and what is said of those that are no images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from softprompt.data import load_rows, names_file
from softprompt.images import ImageRule, read_image, to_pixels
from tests.tiny.vision import picture

GENERATOR = np.random.default_rng(0)
COLOURS = GENERATOR.integers(0, 256, (6, 5, 3), dtype=np.uint8)


def saved(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def same(found: Image.Image, expected: np.ndarray) -> bool:
    return found.mode == "RGB" and bool((np.array(found) == expected).all())


def test_one_image_in_all_its_forms(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS)
    path = tmp_path / "x.png"
    image.save(path)
    content = path.read_bytes()
    forms = [
        image, path, str(path), content, {"bytes": content, "path": None}, {"bytes": None, "path": str(path)},
        COLOURS, COLOURS / 255, torch.from_numpy(COLOURS), COLOURS.astype(np.uint16) * 257,
    ]  # fmt: skip
    for form in forms:
        assert same(read_image(form), COLOURS), type(form)


def test_grey_images_become_coloured_ones() -> None:
    grey = COLOURS[:, :, 0]
    expected = np.stack([grey] * 3, axis=2)
    for form in (Image.fromarray(grey), grey, grey[:, :, None], saved(Image.fromarray(grey)), grey / 255):
        assert same(read_image(form), expected)
    black_and_white = grey > 128
    ink = np.stack([black_and_white * np.uint8(255)] * 3, axis=2)
    assert same(read_image(black_and_white), ink)
    assert same(read_image(Image.fromarray(black_and_white)), ink)


def test_sixteen_bits_become_eight() -> None:
    wide = GENERATOR.integers(0, 65536, (4, 3), dtype=np.uint16)
    expected = np.stack([(wide / 257).round().astype(np.uint8)] * 3, axis=2)
    for form in (
        wide,
        Image.fromarray(wide),
        saved(Image.fromarray(wide)),
        saved(Image.fromarray(wide), "tiff"),
    ):
        assert same(read_image(form), expected)


def test_what_is_transparent_is_white() -> None:
    clear = np.dstack([COLOURS, np.zeros((6, 5, 1), np.uint8)])
    clear[0, 0, 3] = 255
    expected = np.full((6, 5, 3), 255, np.uint8)
    expected[0, 0] = COLOURS[0, 0]
    for form in (clear, Image.fromarray(clear), saved(Image.fromarray(clear))):
        assert same(read_image(form), expected)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert same(read_image(saved(palette, transparency=0)), np.full((2, 2, 3), 255, np.uint8))
    assert same(read_image(saved(palette)), np.full((2, 2, 3), (10, 20, 30), np.uint8))


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn by a quarter
    image = Image.fromarray(COLOURS)
    turned = read_image(saved(image, exif=exif.tobytes()))
    assert same(turned, np.rot90(COLOURS, 3))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (31, 7)])
def test_every_size_is_brought_to_the_rules(size: tuple[int, int]) -> None:
    for edge in (None, 16):
        pixels = to_pixels(picture(200, 10, 10, size), ImageRule((12, 8), (0, 0, 0), (1, 1, 1), edge))
        assert pixels.shape == (3, 12, 8)
        assert pixels.dtype == torch.uint8
        assert pixels[0].float().mean() > 150 > 60 > pixels[1].float().mean()


def test_the_centre_is_cut_out() -> None:
    ramp = np.repeat(np.arange(0, 200, 10, dtype=np.uint8)[None], 10, axis=0)  # 10 x 20
    rule = ImageRule((8, 8), (0, 0, 0), (1, 1, 1), edge=10)
    pixels = to_pixels(ramp, rule)  # nothing to scale
    assert torch.equal(pixels[0, 0], torch.arange(60, 140, 10, dtype=torch.uint8))
    stretched = to_pixels(ramp, ImageRule((10, 20), (0, 0, 0), (1, 1, 1)))
    assert torch.equal(stretched[2], torch.from_numpy(ramp))


def test_another_size_keeps_the_share_that_is_cut_off() -> None:
    rule = ImageRule((224, 224), (0, 0, 0), (1, 1, 1), edge=256)
    assert rule.resized((84, 84)) == ImageRule((84, 84), (0, 0, 0), (1, 1, 1), edge=96)
    assert rule.resized((224, 224)) == rule
    stretched = ImageRule((224, 224), (0, 0, 0), (1, 1, 1), stretch=(256, 256), as_transformers=True)
    assert stretched.resized((112, 224)).stretch == (128, 256)


def test_settings_that_came_later_change_no_fingerprint_of_a_rule_without_them() -> None:
    rule = ImageRule((224, 224), (0, 0, 0), (1, 1, 1), edge=256)
    assert set(rule.as_dict()) == {"size", "mean", "std", "edge", "resample"}
    assert replace(rule, as_transformers=True).as_dict() == {**rule.as_dict(), "as_transformers": True}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"not an image", "no image that Pillow can read"),
        (saved(picture(1, 2, 3, (64, 64)))[:-400], "damaged or cut off"),
        (3, "found a int"),
        (np.zeros((3, 4, 5), np.uint8), "colours come last"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.full((2, 2), 1.5), "from 0 to 1"),
        (np.full((2, 2), np.nan), "from 0 to 1"),
        (np.zeros((2, 2), np.int32), "of int32"),
        (Image.fromarray(np.zeros((2, 2), np.float32)), "floating-point numbers"),
        (Image.new("RGB", (0, 5)), "0 x 5 pixels"),
    ],
)
def test_what_is_no_image_is_said_to_be_none(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_image(value)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    with pytest.raises(FileNotFoundError, match=r"broken\.jpg"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"broken\.jpg: the image is empty"):
        read_image(str(path))
    path.write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"broken\.jpg: no image"):
        read_image(path)


def test_a_file_that_may_not_be_read_or_is_huge_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(saved(picture(1, 2, 3, (64, 64))))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ValueError, match=r"picture\.png: the image is larger than Pillow opens .* make it smaller"
    ):
        read_image(path)

    def locked(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")  # the tests may run as root, who may read everything

    monkeypatch.setattr(Image, "open", locked)
    with pytest.raises(ValueError, match=r"picture\.png: no permission to read it"):
        read_image(path)


def test_a_picture_of_floating_point_numbers_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "depth.tif"
    Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)).save(path)
    with pytest.raises(ValueError, match=r"depth\.tif: the image holds floating-point numbers"):
        read_image(path)


def test_the_path_beside_bytes_is_named() -> None:
    with pytest.raises(ValueError, match=r"^cats/7\.png: no image .*leave its row out"):
        read_image({"bytes": b"x", "path": "cats/7.png"})
    with pytest.raises(ValueError, match=r"^the bytes of the image column: no image"):
        read_image({"bytes": b"x", "path": None})


def test_images_of_a_hub_data_set_are_left_undecoded_until_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = saved(picture(200, 10, 10))
    held = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": good, "path": "0.png"}, {"bytes": b"x", "path": "1.png"}],
            "label": [1, 0],
        },
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"])),
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: held)
    rows = load_rows("someone/pets", "train")
    assert rows[0] == {"image": {"bytes": good, "path": "0.png"}, "label": 1}
    assert read_image(rows[0]["image"]).size == (16, 12)
    with pytest.raises(ValueError, match=r"1\.png: no image"):
        read_image(rows[1]["image"])


def test_a_long_strip_is_not_blown_up() -> None:
    strip = picture(9, 9, 9, (2000, 1))
    with pytest.raises(ValueError, match="so long a strip"):
        to_pixels(strip, ImageRule((8, 8), (0, 0, 0), (1, 1, 1), edge=8))
    assert to_pixels(strip, ImageRule((8, 8), (0, 0, 0), (1, 1, 1))).shape == (3, 8, 8)


# --- folders -----------------------------------------------------------------------------------------------


def fill(folder: Path, names: dict[str, list[str]]) -> Path:
    for kind, files in names.items():
        (folder / kind).mkdir(parents=True)
        for name in files:
            (folder / kind / name).parent.mkdir(exist_ok=True)
            picture(1, 2, 3).save(folder / kind / name, "png")
    return folder


def test_a_folder_of_classes_gives_rows(tmp_path: Path) -> None:
    fill(tmp_path, {"dog": ["b.png", "a.JPG", "in/c.webp", ".hidden.png"], "cat": ["1.png"]})
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    (tmp_path / "README.md").write_text("no class")
    rows = load_rows(tmp_path)
    found = [(Path(row["image"]).relative_to(tmp_path).as_posix(), row["label"]) for row in rows]
    assert found == [
        ("cat/1.png", "cat"),
        ("dog/a.JPG", "dog"),
        ("dog/b.png", "dog"),
        ("dog/in/c.webp", "dog"),
    ]
    assert names_file(tmp_path)
    assert read_image(rows[0]["image"]).size == (16, 12)


def test_a_folder_with_splits_is_read_split_by_split(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2)):
        fill(tmp_path / name, {"a": [f"{i}.png" for i in range(count)], "b": ["0.png"]})
    assert len(load_rows(tmp_path, "train")) == 4
    assert len(load_rows(tmp_path, "validation")) == 3
    assert not names_file(tmp_path)
    wrong: dict[str | None, str] = {None: r"splits \['train', 'val'\]: say which", "test": "no split 'test'"}
    for split, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_rows(tmp_path, split)


def test_folders_that_are_not_in_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no class folders"):
        load_rows(tmp_path)
    fill(tmp_path, {"a": ["0.png"], "b": []})
    with pytest.raises(ValueError, match=r"class folder .*b holds no image"):
        load_rows(tmp_path)
    with pytest.raises(ValueError, match="has no folder of this name"):
        load_rows(tmp_path, "train")
    (tmp_path / "b" / "1.png").write_bytes(b"x")
    picture(1, 2, 3).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"beside the class folders, such as 'loose.png'"):
        load_rows(tmp_path)
