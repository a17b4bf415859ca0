"""Image data sets out of archives, from small archives written here."""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softprompt.images import read_image
from softprompt.zoo.archives import read_members
from softprompt.zoo.pictures import (
    CIFAR10,
    CLOTHES,
    Picture,
    read_cifar10,
    read_emoji,
    read_fashion_mnist,
    read_flags,
    read_fluent_emoji,
    read_solar_cells,
    write_pictures,
)
from softprompt.zoo.rows import SPLITS, bigbench_member, read_rows, split_of


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


def deb_of(path: Path, members: dict[str, bytes]) -> Path:
    """A Debian package: an ar archive of three members, the last one a tar of what it installs."""
    files = tar_of(path.with_name("data.tar.gz"), members).read_bytes()
    with path.open("wb") as deb:
        deb.write(b"!<arch>\n")
        for name, content in (("debian-binary", b"2.0"), ("control.tar.gz", b"?"), ("data.tar.gz", files)):
            deb.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            deb.write(content + b"\n" * (len(content) % 2))
    return path


def idx(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, ">u4").tobytes()
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes())


def emoji_entry(code: str, name: str, subcategory: str = "country-flag") -> dict[str, object]:
    return {
        "unified": code, "image": f"{code.lower()}.png", "name": name, "short_name": name, "category": "Flags",
        "subcategory": subcategory, "has_img_google": True, "has_img_twitter": True,
    }  # fmt: skip


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


def test_fluent_emoji_are_found_in_the_listing_by_their_code(tmp_path: Path) -> None:
    listing = [
        emoji_entry("2764-FE0F", "Red Heart", "heart"),
        emoji_entry("0023-FE0F-20E3", "Hash", "keycap"),
    ]
    listed = tar_of(tmp_path / "listed.tgz", {"package/emoji.json": json.dumps(listing).encode()})
    codes = ("2764", "23-fe0f-20e3", "0023-20e3", "1f600")  # one lies there twice, one is in no listing
    assets = {f"package/assets/{code}.webp": png(i) for i, code in enumerate(codes)}
    found = list(read_fluent_emoji(tar_of(tmp_path / "x.tgz", assets), listed))
    assert [(p.name, p.key, p.content) for p in found] == [
        ("2764.webp", "2764-FE0F", png(0)),
        ("23-fe0f-20e3.webp", "0023-FE0F-20E3", png(1)),
    ]
    assert found[0].facts == {
        "code": "2764-FE0F", "name": "red heart", "subcategory": "heart", "label": "Flags",
    }  # fmt: skip


def test_flags_have_one_image_of_each_country_in_each_split(tmp_path: Path) -> None:
    codes = {"1F1E6-1F1E9": "Andorra Flag", "1F1E6-1F1F1": "Albania Flag", "1F1F9-1F1E9": "Chad Flag"}
    entries = [emoji_entry(code, name) for code, name in codes.items()]
    listing = json.dumps([*entries, emoji_entry("1F3C1", "Chequered Flag", "flag")]).encode()
    archives = []
    for vendor in ("google", "twitter"):
        names = [*codes, "1F3C1"]
        members = {
            f"package/img/{vendor}/64/{code.lower()}.png": png(i + len(vendor))
            for i, code in enumerate(names)
        }
        archives.append(tar_of(tmp_path / f"{vendor}.tgz", {"package/emoji.json": listing, **members}))
    drawn = {f"package/assets/{code.lower()}.webp": png(9) for code in list(codes)[:2]}
    write_pictures(
        tar_of(tmp_path / "fluent.tgz", {**drawn, "package/assets/1f3c1.webp": png(8)}),
        tmp_path,
        *archives,
        read=read_flags,
    )
    styles = {"train": "google", "validation": "fluent", "test": "twitter"}
    for split in SPLITS:
        rows = read_rows(tmp_path / f"{split}.jsonl")
        assert [row["label"] for row in rows] == ["Andorra", "Albania"]  # Fluent has no flag of Chad
        assert {row["style"] for row in rows} == {styles[split]}
        assert all((tmp_path / row["image"]).is_file() for row in rows)


def test_cifar_images_are_decoded_and_named(tmp_path: Path) -> None:
    examples = [
        {"input": base64.b64encode(png(i)).decode(), "target_scores": {"ship": i % 2, "truck": 1 - i % 2}}
        for i in range(2)
    ]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(bigbench_member(CIFAR10), json.dumps({"examples": examples}))
    found = list(read_cifar10(tmp_path / "x.zip"))
    assert [(p.name, p.content, p.facts) for p in found] == [
        ("00000.png", png(0), {"label": "truck"}),
        ("00001.png", png(1), {"label": "ship"}),
    ]
    assert len({p.key for p in found}) == 2


def fashion_mnist(path: Path, train: int = 40) -> Path:
    generator = np.random.default_rng(0)
    members = {}
    for part, count in (("train", train), ("t10k", 3)):
        folder = f"./usr/share/datasets/fashion-mnist/{part}"
        images = generator.integers(0, 256, (count, 4, 5), dtype=np.uint8)
        members[f"{folder}-images-idx3-ubyte.gz"] = idx(images)
        members[f"{folder}-labels-idx1-ubyte.gz"] = idx(np.arange(count) % 10)
    return deb_of(path, members)


def test_fashion_mnist_keeps_its_own_test_images_and_splits_the_rest(tmp_path: Path) -> None:
    write_pictures(fashion_mnist(tmp_path / "x.deb"), tmp_path, read=read_fashion_mnist)
    splits = {split: read_rows(tmp_path / f"{split}.jsonl") for split in SPLITS}
    assert [row["image"] for row in splits["test"]] == [f"images/t10k-{i:05}.png" for i in range(3)]
    assert [row["label"] for row in splits["test"]] == list(CLOTHES[:3])
    assert len(splits["train"]) + len(splits["validation"]) == 40
    assert 0 < len(splits["validation"]) < 12
    [(_, packed)] = read_members(tmp_path / "x.deb", "*/t10k-images*")
    first = np.frombuffer(gzip.decompress(packed)[16:36], np.uint8).reshape(4, 5)
    assert (np.asarray(Image.open(tmp_path / splits["test"][0]["image"])) == first).all()


def test_a_cut_array_and_a_file_that_is_no_debian_package_are_errors(tmp_path: Path) -> None:
    whole = gzip.decompress(idx(np.zeros((2, 3))))
    for content, message in ((whole[:-1], "its header says"), (b"\x89PNG" + whole, "expected an IDX file")):
        members = {
            f"./x/{part}-{kind}-ubyte.gz": gzip.compress(content)
            for part in ("train", "t10k")
            for kind in ("images-idx3", "labels-idx1")
        }
        with pytest.raises(ValueError, match=message):
            list(read_fashion_mnist(deb_of(tmp_path / "x.deb", members)))
    (tmp_path / "x.deb").write_bytes(b"no archive at all")
    with pytest.raises(KeyError, match="not a Debian package"):
        list(read_members(tmp_path / "x.deb", "*"))


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
