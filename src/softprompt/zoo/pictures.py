"""Image data sets inside archives, written once as files of images and as rows that name them.

A row is a dictionary of strings: `image`, the path within the data set's folder, whatever is known of it, `label` last.
"""

from __future__ import annotations

import base64
import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from softprompt.zoo.archives import read_members
from softprompt.zoo.rows import SPLITS, Row, Split, bigbench_member, split_of

FOLDER = "images"


@dataclass(frozen=True)
class Picture:
    """An image in an archive.

    name     unique name of its file
    content  the bytes of that file, unchanged
    key      images with the same key are in the same split
    facts    the other columns of its row, `label` last
    split    its split, if the data set has one; None: the key decides
    """

    name: str
    content: bytes
    key: str
    facts: Row
    split: Split | None = None


def write_pictures(
    archive: Path, target: Path, *beside: Path, read: Callable[..., Iterable[Picture]]
) -> None:
    """Write the images that `read` finds in an archive and train, validation and test .jsonl into `target`.

    beside: further archives for `read`. Raises ValueError for two images of one name, and if a split would be empty.
    """
    splits: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    folder = target / FOLDER
    folder.mkdir()
    for picture in read(archive, *beside):
        file = folder / picture.name
        if file.exists():
            raise ValueError(f"{archive.name} holds two images that would be called {picture.name}")
        file.write_bytes(picture.content)
        splits[picture.split or split_of(picture.key)].append(
            {"image": f"{FOLDER}/{picture.name}", **picture.facts}
        )
    for split, rows in splits.items():
        if not rows:
            raise ValueError(
                f"{archive.name}: no images fall into the {split} split; the archive holds too few"
            )
        lines = "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in sorted(rows, key=lambda row: row["image"])
        )
        (target / f"{split}.jsonl").write_text(lines, encoding="utf-8", newline="\n")


def read_emoji(archive: Path, *, vendor: str) -> Iterator[Picture]:
    """Emoji of a vendor at 64 pixels: code, name, subcategory; the label is the category.

    The split is by the code point: an emoji is in the same one in every vendor's style.
    """
    known = {entry["image"]: entry for entry in _emoji(archive) if entry.get(f"has_img_{vendor}")}
    for path, content in read_members(archive, f"package/img/{vendor}/64/*.png"):
        entry = known.get(PurePosixPath(path).name)
        if entry is not None:  # else the skin tones of another entry
            yield Picture(entry["image"], content, entry["unified"], _facts(entry))


def read_fluent_emoji(archive: Path, listed: Path) -> Iterator[Picture]:
    """Fluent's emoji at 256 pixels; their names come from the listing in another vendor's archive, `listed`.

    Columns and split are those of `read_emoji`. The package also holds flags, which look like Noto's.
    """
    known = {_code(entry["unified"]): entry for entry in _emoji(listed)}
    for path, content in read_members(archive, "package/assets/*.webp"):
        name = PurePosixPath(path)
        entry = known.pop(_code(name.stem), None)  # some lie there twice, with and without fe0f
        if entry is not None:
            yield Picture(name.name, content, entry["unified"], _facts(entry))


# The flags in Fluent's package are drawn after Noto's, so the other style is kept for the test.
STYLE_SPLITS: dict[str, Split] = {"google": "train", "fluent": "validation", "twitter": "test"}


def read_flags(fluent: Path, google: Path, twitter: Path) -> Iterator[Picture]:
    """Flags of the countries that are drawn in three styles: the code and the style; the label is the country.

    A style is a split, as in `STYLE_SPLITS`: each country has one image in each.
    """
    styles = {
        "google": read_emoji(google, vendor="google"),
        "twitter": read_emoji(twitter, vendor="twitter"),
        "fluent": read_fluent_emoji(fluent, google),
    }
    found = {
        style: {p.key: p for p in pictures if p.facts["subcategory"] == "country-flag"}
        for style, pictures in styles.items()
    }
    names = {entry["unified"]: entry["name"].removesuffix(" Flag") for entry in _emoji(google)}
    for style, flags in found.items():
        for key, flag in flags.items():
            if all(key in others for others in found.values()):
                facts = {"code": key, "style": style, "label": names[key]}
                yield Picture(f"{style}-{flag.name}", flag.content, key, facts, STYLE_SPLITS[style])


def _emoji(archive: Path) -> list[dict[str, Any]]:
    """The listing of an emoji-datasource package."""
    [(_, listing)] = read_members(archive, "package/emoji.json")
    entries: list[dict[str, Any]] = json.loads(listing)
    return entries


def _facts(entry: Mapping[str, Any]) -> Row:
    return {
        "code": entry["unified"],
        "name": (entry["name"] or entry["short_name"]).lower(),
        "subcategory": entry["subcategory"],
        "label": entry["category"],
    }


def _code(code: str) -> str:
    """Code points in a form common to all vendors: without the variation selector for colour, and without leading zeros."""
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def read_cifar10(archive: Path) -> Iterator[Picture]:
    """The 10,000 images of CIFAR-10's test set, 32 x 32 pixels, from BIG-bench.

    The split is by the bytes of the image, so that equal ones never cross it.
    """
    for _, content in read_members(archive, bigbench_member(CIFAR10)):
        for number, example in enumerate(json.loads(content)["examples"]):
            image = base64.b64decode(example["input"])
            scores = example["target_scores"]
            key = hashlib.sha256(image).hexdigest()
            yield Picture(f"{number:05}.png", image, key, {"label": max(scores, key=scores.get)})


CIFAR10 = "cifar10_classification/base64"

CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_fashion_mnist(archive: Path) -> Iterator[Picture]:
    """Fashion-MNIST (Xiao et al. 2017), 28 x 28 pixels of grey, in its own test split.

    A tenth or so of its 60,000 training images become the validation split, by their bytes.
    Raises ValueError for a file that does not have the length or the kind that its header says.
    """
    for part in ("train", "t10k"):
        images, labels = (
            _idx(archive, f"*/{part}-{kind}-ubyte.gz") for kind in ("images-idx3", "labels-idx1")
        )
        for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
            key = hashlib.sha256(pixels.tobytes()).hexdigest()
            split: Split = "validation" if split_of(key) == "validation" else "train"
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            facts = {"label": CLOTHES[label]}
            yield Picture(
                f"{part}-{number:05}.png",
                file.getvalue(),
                key,
                facts,
                "test" if part == "t10k" else split,
            )


def _idx(archive: Path, pattern: str) -> np.ndarray:
    """An array in MNIST's file format: two zeros, a byte for uint8, the number of dimensions, their sizes, the data."""
    [(name, packed)] = read_members(archive, pattern)
    content = gzip.decompress(packed)
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{name} begins with {content[:3]!r}, expected an IDX file of bytes")
    sizes = np.frombuffer(content, ">u4", count=content[3], offset=4)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    if len(data) != sizes.prod():
        raise ValueError(f"{name} holds {len(data)} bytes, its header says {sizes.tolist()}")
    return data.reshape(sizes)


DEFECTS = {0.0: "functional", 0.33: "probably functional", 0.67: "probably defective", 1.0: "defective"}


def read_solar_cells(archive: Path) -> Iterator[Picture]:
    """Electroluminescence images of solar cells: the kind of cell; the label is how sure an expert was of a defect."""
    [(_, listing)] = read_members(archive, "elpv_dataset/data/labels.csv")
    text = listing.decode("utf-8").replace("\t", " ")
    cells = csv.reader(io.StringIO(text), delimiter=" ", skipinitialspace=True)
    known = {
        PurePosixPath(path).name: (float(chance), kind) for path, chance, kind, *_ in filter(None, cells)
    }
    for path, content in read_members(archive, "elpv_dataset/data/images/*.png"):
        name = PurePosixPath(path).name
        chance, kind = known[name]
        label = DEFECTS[min(DEFECTS, key=lambda step: abs(step - chance))]
        yield Picture(name, content, name, {"cell": kind, "label": label})
