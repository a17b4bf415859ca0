"""Image data sets inside archives, written once as files of images and as rows that name them.

A row is a dictionary of strings: `image`, the path within the carrier's folder, whatever is known of it, `label` last.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from softprompt.carriers.archives import read_members
from softprompt.carriers.rows import SPLITS, Row, Split, split_of

FOLDER = "images"


@dataclass(frozen=True)
class Picture:
    """An image as it lies in an archive.

    name     of its file, unlike any other's
    content  the bytes of that file, as they are
    key      images with the same key never fall into different splits
    facts    the columns of its row beside `image`, `label` last
    """

    name: str
    content: bytes
    key: str
    facts: Row


def write_pictures(archive: Path, target: Path, *, read: Callable[[Path], Iterable[Picture]]) -> None:
    """Write the images that `read` finds in an archive and train, validation and test .jsonl into `target`.

    Raises ValueError for two images of one name, and if a split would be empty.
    """
    splits: dict[Split, list[Row]] = {split: [] for split in SPLITS}
    folder = target / FOLDER
    folder.mkdir()
    for picture in read(archive):
        file = folder / picture.name
        if file.exists():
            raise ValueError(f"{archive.name} holds two images that would be called {picture.name}")
        file.write_bytes(picture.content)
        splits[split_of(picture.key)].append({"image": f"{FOLDER}/{picture.name}", **picture.facts})
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
    [(_, listing)] = read_members(archive, "package/emoji.json")
    known = {entry["image"]: entry for entry in json.loads(listing) if entry.get(f"has_img_{vendor}")}
    for path, content in read_members(archive, f"package/img/{vendor}/64/*.png"):
        entry = known.get(PurePosixPath(path).name)
        if entry is None:  # skin tones of another entry
            continue
        yield Picture(
            entry["image"],
            content,
            entry["unified"],
            {
                "code": entry["unified"],
                "name": (entry["name"] or entry["short_name"]).lower(),
                "subcategory": entry["subcategory"],
                "label": entry["category"],
            },
        )


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
