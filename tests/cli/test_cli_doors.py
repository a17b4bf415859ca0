"""The command line as a door: encodings, files of predictions, streams that take nothing, names that are slips."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from tests.cli.runs import ROWS, as_json, softprompt

CPU = ("--dtype", "float32", "--device", "cpu")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "softprompt", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == softprompt("--version").stdout.strip()


@pytest.mark.slow
def test_evaluate_and_predict_read_files_in_other_encodings(trained: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("text,label\nthé film,pos\na “good” book,neg\n".encode("cp1252"))
    assert as_json("evaluate", trained, "--data", file, "--encoding", "cp1252", *CPU)["metrics"]["rows"] == 2
    found = as_json("predict", trained, "--file", file, "--encoding", "cp1252", "--batch-size", "1", *CPU)
    assert [answer["input"]["text"] for answer in found["predictions"]] == ["thé film", "a “good” book"]
    for command in (("evaluate", trained, "--data", file), ("predict", trained, "--file", file)):
        result = softprompt(*command, *CPU)
        assert result.exit_code == 1
        assert "--encoding" in result.stderr


def read(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".csv":
            with path.open(encoding="utf-8", newline="") as file:
                return list(csv.DictReader(file))
        case ".jsonl":
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        case _:
            return list(pyarrow.parquet.read_table(path).to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_predictions_are_written_beside_their_rows(suffix: str, trained: Path, tmp_path: Path) -> None:
    rows = [{**row, "number": i, "extra": [1] if i % 2 else None} for i, row in enumerate(ROWS * 5)]
    given, output = tmp_path / "rows.jsonl", tmp_path / f"answers{suffix}"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    said = as_json("predict", trained, "--file", given, "--output", output, "--batch-size", "2", *CPU)
    assert said == {"output": str(output), "rows": len(rows)}
    expected = as_json("predict", trained, "--file", given, *CPU)["predictions"]
    found = read(output)
    assert [row["text"] for row in found] == [row["text"] for row in rows]
    assert [int(row["number"]) for row in found] == list(range(len(rows)))
    assert [row["prediction"] for row in found] == [answer["label"] for answer in expected]
    for row, answer in zip(found, expected, strict=True):
        shares = row["probabilities"]
        shares = json.loads(shares) if isinstance(shares, str) else shares
        assert shares == pytest.approx(answer["probabilities"], rel=1e-4)
        assert float(row["probability"]) == shares[row["prediction"]]
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted([given.name, output.name])


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_spreadsheet_runs_no_text_of_a_csv(suffix: str, trained: Path, tmp_path: Path) -> None:
    texts = ["=1+1", "+film", "-film", "@film", "a=film", "-1.5"]
    given, output = tmp_path / "rows.jsonl", tmp_path / f"answers{suffix}"
    given.write_text("".join(json.dumps({"text": t, "=id": "=x"}) + "\n" for t in texts), encoding="utf-8")
    assert softprompt("predict", trained, "--file", given, "--output", output, *CPU).exit_code == 0
    found = read(output)
    mark = "'" if suffix == ".csv" else ""
    assert [row["text"] for row in found] == [*(mark + text for text in texts[:4]), *texts[4:]]
    assert all(row[f"{mark}=id"] == f"{mark}=x" for row in found)


@pytest.mark.slow
def test_an_output_that_cannot_be_is_refused_before_anything_is_computed(
    trained: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "a", "prediction": "b"}\n')
    for arguments, told in (
        (("--file", rows, "--output", tmp_path / "x.txt"), "ends in .csv, .jsonl, .parquet"),
        (("a text", "--output", tmp_path / "x.csv"), "give them with --file"),
        (("--file", rows, "--output", tmp_path / "x.csv"), "the rows have a column 'prediction'"),
        (("--file", rows, "--output", tmp_path / "y" / ".." / "rows.jsonl"), "the file that is read"),
    ):
        result = softprompt("predict", trained, *arguments, *CPU)
        assert result.exit_code == 1
        assert told in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_backbone_that_is_not_there_is_asked_for_as_an_option(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softprompt.cli._options.open_backbone", not_found)
    result = softprompt("predict", trained, "a text")
    assert result.exit_code == 1
    assert "the prompt was trained on" in result.stderr
    assert "give --backbone" in result.stderr
    result = softprompt("predict", trained, "a text", "--backbone", "elsewhere")
    assert result.exit_code == 1
    assert "trained on" not in result.stderr


def not_found(*arguments: Any, **settings: Any) -> None:
    raise FileNotFoundError("nothing is there")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device of a full disk is Linux's")
@pytest.mark.parametrize(
    "arguments", [["fetch", "--list", "--json"], ["fetch", "--list"], ["fetch", "nonsense", "--json"]]
)
def test_a_stream_that_takes_nothing_is_one_message_and_exit_code_1(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "softprompt", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert "error: " in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("locale", [{"LC_ALL": "C"}, {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}])
def test_letters_that_the_locale_lacks_do_not_end_a_command(locale: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "softprompt", "fetch", "möglich"],
        env={**os.environ, **locale},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1
    assert b"error: " in done.stderr
    assert b"glich" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"recipe": {"steps": -1}}, "  steps: -1"),
        ({"axes": {"method": ["zero-shot", "prompt-tunin"]}}, "  method:"),
        ({"axes": {"recipe.steps": [4, "many"]}, "method": "zero-shot"}, "  recipe.steps:"),
        ({"axes": {"methot": ["zero-shot"]}}, "  methot:"),
    ],
)
def test_a_setting_of_a_study_that_does_not_fit_is_named_with_its_line(
    trained: Path, tmp_path: Path, changes: dict[str, Any], at: str
) -> None:
    study = tmp_path / "study.yaml"
    rows = {"train": "rows.jsonl"}
    values = {
        "title": "T",
        "task": {"name": "text-classification", "template": "{text}", "labels": {"a": " a", "b": " b"}},
    }
    values |= {"backbone": "none", "data": rows, "seeds": [0], "axes": {"method": ["zero-shot"]}}
    study.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    line = study.read_text().splitlines().index(at) + 1
    result = softprompt("compare", study, "--output", tmp_path / "out", "--dry-run")
    assert result.exit_code == 1
    assert f"study.yaml, line {line}:" in " ".join(result.stderr.split())
