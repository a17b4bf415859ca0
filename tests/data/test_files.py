"""Files as people have them: spreadsheets of other countries, pandas' index, packed files, JSON under either name."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from softprompt.data import load_rows

ROWS = [{"text": "a good film, really", "label": "pos"}, {"text": "not a good day", "label": "neg"}]


def written(path: Path, content: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolons.csv", 'text;label\n"a good film, really";pos\nnot a good day;neg\n'),
        ("semicolons.csv", "text;label\na good film, really;pos\nnot a good day;neg\n"),
        ("tabs.csv", "text\tlabel\na good film, really\tpos\nnot a good day\tneg\n"),
        ("bars.csv", "text|label\na good film, really|pos\nnot a good day|neg\n"),
        ("said.csv", "sep=;\r\ntext;label\r\na good film, really;pos\r\nnot a good day;neg\r\n"),
        ("index.csv", ',text,label\n0,"a good film, really",pos\n1,not a good day,neg\n'),
        ("trailing.csv", 'text,label,\n"a good film, really",pos,\nnot a good day,neg,\n'),
        ("trailing_rows.csv", 'text,label\n"a good film, really",pos,\nnot a good day,neg,\n'),
        ("UPPER.CSV", 'text,label\n"a good film, really",pos\nnot a good day,neg\n'),
        ("quoted.tsv", 'text\tlabel\n"a good film, really"\tpos\n"not a good day"\tneg\n'),
        ("lines.json", "\n".join(map(json.dumps, ROWS))),
        ("list.jsonl", json.dumps(ROWS)),
        ("spread.jsonl", json.dumps(ROWS, indent=2)),
    ],
)  # fmt: skip
def test_the_same_rows_however_they_are_written(tmp_path: Path, name: str, content: str) -> None:
    assert load_rows(written(tmp_path / name, content)) == ROWS


def test_files_that_are_packed(tmp_path: Path) -> None:
    table = b'text,label\n"a good film, really",pos\nnot a good day,neg\n'
    for name, content in (
        ("a.csv.gz", table),
        ("A.CSV.GZ", table),
        ("a.json.gz", json.dumps(ROWS).encode()),
        ("a.jsonl.gz", "\n".join(map(json.dumps, ROWS)).encode()),
    ):
        assert load_rows(written(tmp_path / name, gzip.compress(content))) == ROWS
    with pytest.raises(ValueError, match="not a complete gzip file"):
        load_rows(written(tmp_path / "cut.csv.gz", gzip.compress(table)[:20]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_says_how_a_file_is_written(tmp_path: Path, encoding: str) -> None:
    text = "text,label\nnaïve,pos\n"
    mark = "" if encoding in ("utf-8-sig", "utf-16", "utf-32") else "\ufeff"
    path = written(tmp_path / "a.csv", mark + text, encoding)
    for name in ("utf-8", "utf8", "UTF8", "U8"):
        assert load_rows(path, encoding=name) == [{"text": "naïve", "label": "pos"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", ",text\nx,a\ny,b\n", r"column 1 has no name .*index=False"),
        ("a.csv", "text;label\na;b;c\n", r"line 2: 3 cells under 2 columns .*separated by ';'"),
        ("a.csv", "sep=;\ntext;label\na\n", "line 3: 1 cells"),
        ("a.csv", b"PK\x03\x04rest", "zip archive, perhaps an Excel workbook: save it as CSV"),
        ("a.ods", "x", "workbooks are not read"),
        ("a.jsonl", '{"text": "a", "label": "b", "label": "c"}', "line 1: the key 'label' is there twice"),
        ("a.json", "[" * 100_000, "nested too deeply"),
        ("a.csv", b"text\nok\nna\xefve\n", r"position 10, line 3"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "NUL characters.*name the encoding utf-16-le"),
        ("a.csv.gz", gzip.compress(bytes(70 * 2**20)), "unpacks to more than 67,108,864"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_rows(written(tmp_path / name, content))


def test_very_many_columns_are_read_and_an_error_about_them_is_short(tmp_path: Path) -> None:
    names = [f"c{i}" for i in range(100_000)]
    header, row = ",".join(names), ",".join(["1"] * len(names))
    assert list(load_rows(written(tmp_path / "a.csv", f"{header}\n{row}\n"))[0]) == names
    for content, told in (
        (f"{header},c1\n{row},1\n", r"\['c1'\] more than once"),
        (f"{header},\n{row},1\n", "column 100001 has no name"),
        (f"{header}\n1\n", "1 cells under 100000 columns"),
    ):
        with pytest.raises(ValueError, match=told) as caught:
            load_rows(written(tmp_path / "b.csv", content))
        assert len(str(caught.value)) < 1000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_in_the_place_of_a_table_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ValueError, match="a device or a pipe, expected a regular file"):
        load_rows(tmp_path / "a.csv")


@pytest.mark.parametrize("encoding", ["a\0b", "utf-99", "rot13", "base64", ""])
def test_an_encoding_that_is_none_is_said(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(ValueError, match=r"not an? (text )?encoding"):
        load_rows(written(tmp_path / "a.csv", "text\na\n"), encoding=encoding)
