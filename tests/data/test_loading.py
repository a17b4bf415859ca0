from __future__ import annotations

import json
from collections import Counter

import pandas
import pytest

from softprompt import zoo
from softprompt.data import batches, by_length, few_shot, load_rows, subsample

ROWS = [{"text": f"row {i}", "label": "abb"[i % 3]} for i in range(30)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_every_file_format_gives_the_same_rows(tmp_path):
    rows = [{"text": 'a, "b"', "label": "x"}, {"text": "é", "label": "y"}]
    frame = pandas.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.tsv", 'text\tlabel\r\na, "b"\tx\r\né\ty\r\n')
    write(tmp_path / "a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    write(tmp_path / "a.json", json.dumps(rows))
    for suffix in ("csv", "tsv", "jsonl", "json", "parquet"):
        assert load_rows(tmp_path / f"a.{suffix}") == rows, suffix
        assert load_rows(str(tmp_path / f"a.{suffix}")) == rows, suffix


def test_text_that_looks_missing_stays_text_and_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbftext,label\nN/A,1\n,2\n\nnull,3\n")
    assert load_rows(path) == [
        {"text": "N/A", "label": "1"},
        {"text": "", "label": "2"},
        {"text": "null", "label": "3"},
    ]


def test_a_lone_quote_in_a_tsv_swallows_no_rows(tmp_path):
    path = write(tmp_path / "a.tsv", 'text\tlabel\n"so good\t1\nbad\t0\n')
    assert [row["text"] for row in load_rows(path)] == ['"so good', "bad"]


def test_a_line_separator_inside_a_json_string_ends_no_row(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a\u2028b"}\n{"text": "c"}')
    assert len(load_rows(path)) == 2


def test_a_very_long_cell_is_read(tmp_path):
    path = write(tmp_path / "a.csv", "text\n" + "x" * 200_000 + "\n")
    assert len(load_rows(path)[0]["text"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"is empty \(0 bytes\)"),
        ("a.csv", "text,label\n", "no rows under its header"),
        ("a.csv", "text,label\na,b\na,b,c\n", "line 3: 3 cells under 2 columns"),
        ("a.csv", "text,label\na\n", "line 2: 1 cells under 2 columns"),
        ("a.csv", 'text,label\n"a,b\n', "is a quote missing"),
        ("a.csv", "text,text\na,b\n", "a name of its own"),
        ("a.csv", "text,\na,b\n", "column 2 has no name"),
        ("a.csv", b"text\ngood\ncaf\xe9\n", r"not utf-8: byte 0xe9 at position 13.*encoding="),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: no valid JSON"),
        ("a.jsonl", "[1]\n", "line 1: expected an object"),
        ("a.jsonl", "\n", "has no rows"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.json", "[]", "has no rows"),
        ("a.json", "[1", "no valid JSON"),
        ("a.parquet", "no parquet", "not a readable parquet"),
        ("a.xlsx", "x", "workbooks are not read: save it as CSV"),
    ],
)
def test_a_bad_file_says_what_is_wrong_with_it(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        load_rows(write(tmp_path / name, content))


def test_another_encoding_is_read_when_it_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "text\ncafé\n".encode("cp1252"))
    assert load_rows(path, encoding="cp1252") == [{"text": "café"}]


def test_a_missing_file_names_the_nearest_one(tmp_path):
    write(tmp_path / "train.csv", "text\na\n")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'train.csv'"):
        load_rows(tmp_path / "tain.csv")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_rows(tmp_path / "nowhere" / "train.csv")


def test_rows_and_files_have_no_splits(tmp_path):
    with pytest.raises(ValueError, match="leave split out"):
        load_rows(ROWS, split="train")
    with pytest.raises(ValueError, match="leave split out"):
        load_rows(write(tmp_path / "a.csv", "text\na\n"), split="train")


def test_rows_are_copied_and_must_be_dictionaries():
    rows = load_rows(ROWS)
    assert rows == ROWS
    rows[0]["text"] = "changed"
    assert ROWS[0]["text"] == "row 0"
    with pytest.raises(TypeError, match="row 1 is a str"):
        load_rows([{"text": "a"}, "b"])
    with pytest.raises(TypeError, match=r"expected a list of dictionaries, one for each row: pass \[row\]"):
        load_rows({"text": "a"})
    with pytest.raises(TypeError, match=r"rows are a int \(3\)"):
        load_rows(3)
    with pytest.raises(ValueError, match="no rows"):
        load_rows([])


def test_a_limit_draws_rows_with_the_seed():
    assert load_rows(ROWS, limit=5, seed=1) == subsample(ROWS, 5, 1)
    assert load_rows(ROWS, limit=100) == ROWS


def test_a_built_in_data_set_is_found_by_its_name(monkeypatch):
    monkeypatch.setattr(zoo, "names", lambda: ["reviews"])
    monkeypatch.setattr(zoo, "load_rows", lambda name, split: [{"text": f"{name} {split}"}])
    assert load_rows("reviews", split="test") == [{"text": "reviews test"}]
    with pytest.raises(ValueError, match="has splits"):
        load_rows("reviews")


def test_a_data_set_that_cannot_be_reached_is_a_clear_error():
    with pytest.raises(ConnectionError, match=r"the hub was not reached.*HF_HUB_OFFLINE"):
        load_rows("someone/no-such-data", split="train")


def test_a_subsample_is_the_same_for_the_same_seed_and_keeps_the_order():
    first = subsample(ROWS, 10, seed=3)
    assert first == subsample(ROWS, 10, seed=3)
    assert first != subsample(ROWS, 10, seed=4)
    places = [ROWS.index(row) for row in first]
    assert places == sorted(set(places))
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"the number of rows is {wrong}: expected a whole number"):
            subsample(ROWS, wrong, seed=0)  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "expected"), [(3, {"a": 1, "b": 2}), (10, {"a": 3, "b": 7}), (1, {"b": 1})])
def test_a_stratified_subsample_keeps_the_shares_of_the_classes(n, expected):
    assert Counter(row["label"] for row in subsample(ROWS, n, seed=0, stratify="label")) == expected


def test_few_shot_gives_k_rows_of_each_class():
    rows = few_shot(ROWS, 4, "label", seed=0)
    assert Counter(row["label"] for row in rows) == {"a": 4, "b": 4}
    assert rows == few_shot(ROWS, 4, "label", seed=0)
    assert rows != few_shot(ROWS, 4, "label", seed=1)
    with pytest.raises(ValueError, match=r"only \{'a': 10\} rows"):
        few_shot(ROWS, 11, "label", seed=0)
    with pytest.raises(ValueError, match="row 0 has no column 'lable'"):
        few_shot(ROWS, 1, "lable", seed=0)


def test_an_epoch_has_every_row_once_and_depends_on_seed_and_epoch_only():
    epoch = batches(10, 4, seed=0, epoch=0)
    assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert sorted(i for batch in epoch for i in batch) == list(range(10))
    assert epoch == batches(10, 4, seed=0, epoch=0)
    others = [batches(10, 4, seed=seed, epoch=e) for seed, e in ((0, 1), (1, 0), (1, 1))]
    assert all(other != epoch for other in others)
    assert len({repr(other) for other in others}) == 3
    assert batches(0, 4, seed=0, epoch=0) == []
    with pytest.raises(ValueError, match="batch_size=0"):
        batches(10, 0, seed=0, epoch=0)


def test_batches_by_length_put_like_with_like_and_the_longest_first():
    assert by_length([3, 9, 1, 9, 4], 2) == [[1, 3], [4, 0], [2]]
    assert by_length([], 2) == []
