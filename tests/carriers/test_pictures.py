"""Image data sets out of archives, from small archives written here."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from softprompt.carriers.pictures import Picture, read_emoji, read_solar_cells, write_pictures
from softprompt.carriers.rows import SPLITS, read_rows, split_of
from softprompt.images import read_image


def png(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (2, 2), shade).save(content, "png")
    return content.getvalue()


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def test_emoji_are_named_and_skin_tones_left_out(tmp_path: Path) -> None:
    entry = {"unified": "1F600", "image": "1f600.png", "name": "GRINNING FACE", "short_name": "grinning"}
    entry |= {"category": "Smileys", "subcategory": "face", "has_img_google": True}
    listing = [entry, {**entry, "image": "1f601.png", "has_img_google": False}]
    members = {
        "package/img/google/64/1f600.png": png(1),
        "package/img/google/64/1f600-1f3fb.png": png(2),
        "package/img/google/64/1f601.png": png(3),
        "package/emoji.json": json.dumps(listing).encode(),
    }
    found = list(read_emoji(tar_of(tmp_path / "x.tgz", members), vendor="google"))
    facts = {"code": "1F600", "name": "grinning face", "subcategory": "face", "label": "Smileys"}
    assert found == [Picture("1f600.png", png(1), "1F600", facts)]


def test_solar_cells_have_their_kind_and_label(tmp_path: Path) -> None:
    labels = (
        "images/cell0001.png    1.0                 mono\nimages/cell0002.png  0.3333333333333333  poly\n"
    )
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("elpv_dataset/data/labels.csv", labels)
        for i in (1, 2):
            archive.writestr(f"elpv_dataset/data/images/cell000{i}.png", png(i))
    found = {picture.name: picture.facts for picture in read_solar_cells(tmp_path / "x.whl")}
    assert found == {
        "cell0001.png": {"cell": "mono", "label": "defective"},
        "cell0002.png": {"cell": "poly", "label": "probably functional"},
    }


def test_images_become_files_and_their_rows_name_them(tmp_path: Path) -> None:
    def read(archive: Path) -> list[Picture]:
        return [Picture(f"{i}.png", png(i), f"key {i}", {"label": str(i % 2)}) for i in range(60)]

    write_pictures(tmp_path / "archive", tmp_path, read=read)
    seen = 0
    for split in SPLITS:
        for row in read_rows(tmp_path / f"{split}.jsonl"):
            number = int(Path(row["image"]).stem)
            assert list(row) == ["image", "label"]
            assert split_of(f"key {number}") == split
            assert read_image(tmp_path / row["image"]).getpixel((0, 0)) == (number,) * 3
            seen += 1
    assert seen == 60


def test_two_images_of_one_name_and_empty_splits_are_errors(tmp_path: Path) -> None:
    one = Picture("a.png", png(1), "a", {"label": "x"})
    for pictures, message in (([one, one], "two images"), ([one], "too few")):
        target = tmp_path / str(len(pictures))
        target.mkdir()
        with pytest.raises(ValueError, match=message):
            write_pictures(tmp_path / "archive", target, read=lambda archive, found=pictures: found)  # type: ignore[misc]
