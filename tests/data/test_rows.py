"""Rows out of the containers that people have them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy
import pandas
import pytest
import torch

from softprompt.data import load_rows

ROWS: list[dict[str, Any]] = [{"text": "a good film", "label": 1}, {"text": "not a good day", "label": 0}]


class PolarsFrame:
    """What is asked of a polars frame, which is not installed here."""

    columns = ("text", "label")

    def to_dicts(self) -> list[dict[str, Any]]:
        return ROWS


@pytest.mark.parametrize(
    "container",
    [
        ROWS,
        tuple(ROWS),
        iter(ROWS),
        pandas.DataFrame(ROWS),
        PolarsFrame(),
        datasets.Dataset.from_list(ROWS),
        [{"text": row["text"], "label": torch.tensor(row["label"])} for row in ROWS],
        [{"text": row["text"], "label": numpy.int64(row["label"])} for row in ROWS],
    ],
    ids=["list", "tuple", "iterator", "pandas", "polars", "datasets", "tensors", "numpy"],
)
def test_containers_of_rows(container: Any) -> None:
    found = load_rows(container)
    assert found == ROWS
    assert all(type(row["label"]) is int for row in found)


def test_numbers_as_column_names_become_text() -> None:
    assert load_rows([{0: "a", 1: "b"}]) == [{"0": "a", "1": "b"}]


@pytest.mark.parametrize(
    "container",
    [
        pandas.DataFrame([["a", "b"]], columns=["text", "text"]),
        pandas.DataFrame([["a", "b"]], columns=[1, "1"]),
        [{1: "a", "1": "b"}],
    ],
)
def test_no_column_is_lost_because_another_has_its_name(container: Any) -> None:
    with pytest.raises(ValueError, match="each column needs a name of its own"):
        load_rows(container)


def test_the_splits_of_a_dataset_dict() -> None:
    data = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS[:1]), test=datasets.Dataset.from_list(ROWS[1:])
    )
    assert load_rows(data, split="test") == ROWS[1:]
    with pytest.raises(ValueError, match=r"DatasetDict has the splits \['train', 'test'\]: say which"):
        load_rows(data)
    with pytest.raises(ValueError, match="there is no 'validation'"):
        load_rows(data, split="validation")


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=whole).save_to_disk(tmp_path / "split")
    assert load_rows(tmp_path / "one") == ROWS
    assert load_rows(tmp_path / "split", split="train") == ROWS
    with pytest.raises(ValueError, match="say which"):
        load_rows(tmp_path / "split")
