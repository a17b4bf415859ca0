"""Folders of images: which folders are classes and which are splits, and files that are skipped."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from softprompt.data import load_rows, names_file


def filled(folder: Path, *files: str) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name, "png")
    return folder


def labels(rows: list[dict[str, object]]) -> list[object]:
    return [row["label"] for row in rows]


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    filled(tmp_path, "test/0.png", "exam/0.png")
    assert labels(load_rows(tmp_path)) == ["exam", "test"]
    assert names_file(tmp_path)
    filled(tmp_path / "deep", "exam/0.png", "train/steam/0.png", "train/steam/1.png")
    assert labels(load_rows(tmp_path / "deep")) == ["exam", "train", "train"]


def test_folders_without_images_beside_splits_are_no_classes(tmp_path: Path) -> None:
    filled(tmp_path, "train/a/0.png", "train/b/0.png", "test/a/0.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "all.json").write_text("{}")
    assert labels(load_rows(tmp_path, "train")) == ["a", "b"]
    assert not names_file(tmp_path)


def test_images_that_cannot_be_read_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    filled(tmp_path, "a/0.png", "a/1.jfif", "a/2.jpe", "b/0.png", "__MACOSX/._0.png", "a/__MACOSX/1.png")
    (tmp_path / "b" / "1.heic").write_bytes(b"x")
    (tmp_path / "b" / "2.HEIC").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert labels(load_rows(tmp_path)) == ["a", "a", "a", "b"]
    [record] = caplog.records
    assert "2 images are skipped, the installed Pillow does not read .heic" in record.getMessage()
