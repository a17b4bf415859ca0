"""Large files, long lists and Datasets: rows are the same as those that are read at once, and are read when they are needed."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import datasets
import pandas
import pytest

import softprompt as sp
from softprompt.data import indexed, load_rows, loading, open_rows
from softprompt.data.indexed import IndexedRows
from softprompt.tasks.classification import TextClassificationEncoder
from softprompt.training import checkpoint
from softprompt.training.progress import Record, Silent
from tests.tiny.task import ROWS, TASK, tiny_backbone

ODD = [
    {"text": 'a "quoted", text', "label": "x"},
    {"text": "two\nlines\r\nand é ☃", "label": "y"},
    {"text": "", "label": "z"},
    {"text": "end", "label": ""},
]


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_LARGE", 1)
    monkeypatch.setattr(indexed, "MANY", 3)
    monkeypatch.setattr(loading, "MANY", 3)
    monkeypatch.setattr(indexed, "_ARROW_ROWS", 3)


def write(path: Path, content: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(content.encode(encoding))
    return path


def written(folder: Path) -> list[Path]:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ODD)
    pandas.DataFrame(ODD).to_parquet(folder / "a.parquet", row_group_size=2)
    pandas.DataFrame(ODD).to_csv(folder / "pandas.csv")  # with an index, whose column has no name
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ODD)
    semicolons = "text;label\r\na;x\r\n\r\nb, c;y;\r\n"
    return [
        folder / "a.csv",
        folder / "a.parquet",
        folder / "pandas.csv",
        write(folder / "a.jsonl", lines),
        write(folder / "bom.jsonl", lines + "\n", "utf-8-sig"),
        write(folder / "bom.csv", semicolons, "utf-8-sig"),
        write(folder / "excel.csv", "sep=|\r\ntext|label\r\na|x\r\nb|y\r\n"),
    ]


def test_rows_of_a_file_are_the_same_in_any_order(tmp_path: Path) -> None:
    for path in written(tmp_path):
        rows, expected = open_rows(path), load_rows(path)
        assert isinstance(rows, IndexedRows), path.name
        assert len(rows) == len(expected), path.name
        assert list(rows) == expected, path.name
        assert [rows[i] for i in reversed(range(len(rows)))] == expected[::-1], path.name
        assert rows[1:3] == expected[1:3], path.name
        assert rows[-1] == expected[-1], path.name
        with pytest.raises(IndexError):
            rows[len(rows)]
        assert isinstance(rows.digest(), str)


def test_a_limit_draws_the_same_rows_and_reads_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.jsonl", "".join(f'{{"n": {i}}}\n' for i in range(50)))
    with monkeypatch.context() as at_once:
        at_once.setattr(loading, "indexed_file", lambda *_: None)
        expected = load_rows(path, limit=4, seed=3)
    read: list[int] = []
    row_of = indexed.FileRows._row
    monkeypatch.setattr(indexed.FileRows, "_row", lambda rows, i: (read.append(i), row_of(rows, i))[1])
    assert load_rows(path, limit=4, seed=3) == expected
    assert sorted(read) == sorted(row["n"] for row in expected)
    assert load_rows(path, limit=60) == [{"n": i} for i in range(50)]


def test_a_file_in_another_encoding_is_read_by_its_lines_where_it_can_be(tmp_path: Path) -> None:
    latin = write(tmp_path / "a.csv", "text,label\né,x\nü,y\n", "cp1252")
    assert list(open_rows(latin, encoding="cp1252")) == load_rows(latin, encoding="cp1252")
    assert isinstance(open_rows(latin, encoding="cp1252"), IndexedRows)
    wide = write(tmp_path / "b.csv", "text,label\né,x\nü,y\n", "utf-16")
    assert open_rows(wide) == load_rows(wide)


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: no valid JSON"),
        ("a.jsonl", '{"a": 1}\n3\n', "line 2: expected an object"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", "line 3: 3 cells under 2 columns"),
        ("a.csv", "a,a\n1,2\n", "each column needs a name of its own"),
        ("a.csv", "a,\n1,2\n", "has no name"),
        ("a.csv", "a,b\n", "has no rows under its header"),
        ("a.parquet", "no parquet", "not a readable parquet file"),
    ],
)
def test_a_damaged_file_brings_the_error_with_its_line(
    tmp_path: Path, name: str, content: str, error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        open_rows(write(tmp_path / name, content))


def test_a_file_that_is_written_to_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    rows = open_rows(write(tmp_path / "a.jsonl", '{"a": 1}\n{"a": 2}\n'))
    write(tmp_path / "a.jsonl", '{"b": 1, "c": 2}\n{"a": 2}\n')
    with pytest.raises(ValueError, match="was changed while its rows were read"):
        rows[0]


def test_a_list_and_a_dataset_are_not_copied() -> None:
    listed = [dict(row) for row in ROWS]
    rows = open_rows(listed)
    assert isinstance(rows, IndexedRows)
    assert list(rows) == listed
    stored = open_rows(datasets.Dataset.from_list(listed))
    assert isinstance(stored, IndexedRows)
    assert stored[5] == listed[5]
    assert rows.digest() == stored.digest()
    with pytest.raises(TypeError, match="row 2 is a str"):
        open_rows([*listed[:2], "film"])


def test_classes_of_a_dataset_are_labels_by_their_names_or_by_their_numbers(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
    )
    named = datasets.Dataset.from_list(
        [{**row, "label": int(row["label"] == "pos")} for row in ROWS], features=features
    )
    named.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": named, "test": named}).save_to_disk(str(tmp_path / "splits"))
    by_number = sp.TextClassification("{text}", labels={"0": " bad", "1": " good"})
    for rows in (
        open_rows(named),
        load_rows(named),
        open_rows(tmp_path / "saved"),
        load_rows(tmp_path / "saved"),
        open_rows(tmp_path / "splits", "test"),
        load_rows(datasets.DatasetDict({"train": named}), "train"),
    ):
        assert [TASK.read_label(row) for row in rows] == [row["label"] for row in ROWS]
        assert [by_number.read_label(row) for row in rows] == [
            str(int(row["label"] == "pos")) for row in ROWS
        ]


class Counting(Silent):
    """How many rows were encoded when the first step ended."""

    def __init__(self) -> None:
        self.calls = 0
        self.at_first_step: int | None = None

    def update(self, record: Record) -> None:
        self.at_first_step = self.calls if self.at_first_step is None else self.at_first_step


@pytest.mark.slow
def test_a_file_of_many_rows_is_encoded_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    words = ("film" + " by the river" * 10, "dog" + " at night" * 14)
    with (tmp_path / "rows.jsonl").open("w") as file:
        file.writelines(
            f'{{"text": "{words[i % 2]} {i:07d}", "label": "{("pos", "neg")[i % 2]}"}}\n'
            for i in range(60_000)
        )
    backbone, watcher = tiny_backbone(), Counting()
    encode = TextClassificationEncoder.encode

    def counted(self: Any, row: Any, *, answer: bool = True) -> Any:
        watcher.calls += 1
        return encode(self, row, answer=answer)

    monkeypatch.setattr(TextClassificationEncoder, "encode", counted)
    settings: Any = {"steps": 2, "batch_size": 4, "folder": tmp_path / "run", "progress": watcher}
    tracemalloc.start()
    try:
        sp.fit(backbone, TASK, sp.PromptTuning(length=2), tmp_path / "rows.jsonl", **settings)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert watcher.at_first_step == 4
    assert watcher.calls == 8
    # The rows as dictionaries would take more than 25 MB, and their order takes 5.
    assert peak < 12e6


def values(tuned: sp.TunedPrompt) -> list[float]:
    return [x for tensor in tuned.state().values() for x in tensor.flatten().tolist()]


def fitted(rows: Any, folder: Path, method: Any = None, **settings: Any) -> sp.TunedPrompt:
    method = method or sp.PromptTuning(length=2)
    settings = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "progress": False} | settings
    return sp.fit(tiny_backbone(), TASK, method, rows, folder=folder, **settings)


@pytest.mark.slow
def test_many_rows_teach_what_few_do_and_a_run_of_an_earlier_version_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MANY decides how a run is made, and not what it learns."""
    from softprompt.fitting import preparation

    class Stop(Silent):
        def update(self, record: Record) -> None:
            if record.step == 3:
                raise KeyboardInterrupt

    path = write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    at_once = fitted(ROWS, tmp_path / "at-once")
    with pytest.raises(KeyboardInterrupt):
        fitted(ROWS, tmp_path / "earlier", progress=Stop())
    assert "sha256" in begun(tmp_path / "earlier")["rows"]

    monkeypatch.setattr(preparation, "MANY", 3)
    assert values(fitted(path, tmp_path / "streamed")) == values(at_once)
    assert "content" in begun(tmp_path / "streamed")["rows"]
    assert values(fitted(path, tmp_path / "earlier")) == values(at_once)
    with pytest.raises(KeyboardInterrupt):
        fitted(path, tmp_path / "again", progress=Stop())
    assert values(fitted(path, tmp_path / "again")) == values(at_once)

    other = write(tmp_path / "other.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS[::-1]))
    with pytest.raises(sp.CheckpointError, match=r"rows\.content"):
        fitted(other, tmp_path / "again")


def begun(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(folder / checkpoint.FILE, framework="pt") as file:
        return dict(json.loads(file.metadata()["facts"])["identity"])


def test_a_row_that_cannot_be_encoded_is_named_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from softprompt.fitting import preparation

    monkeypatch.setattr(preparation, "MANY", 3)
    rows = [*ROWS[:7], {"text": "film", "label": "unheard of"}]
    with pytest.raises(ValueError, match=r"row 7: label 'unheard of'"):
        fitted(rows, tmp_path / "run", batch_size=8)
