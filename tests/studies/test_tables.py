"""Tables of a report, as files that can be copied without a script."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from softprompt.studies.report import write_report
from softprompt.studies.results import read_results
from softprompt.studies.statistics import summarize
from softprompt.studies.tables import as_csv, as_latex, as_markdown, in_words
from tests.studies.made_up import ended, made_up

AXES = {"method": {"short": {}, "long": {"method.length": 3}}}


def written(folder: Any, name: str) -> list[dict[str, str]]:
    place = folder.path / "report"
    write_report(folder, place)
    return list(csv.DictReader((place / name).read_text(encoding="utf-8").splitlines()))


@pytest.mark.slow
def test_costs_are_there_as_means_and_as_medians(tmp_path: Path) -> None:
    seconds = {0: 2.0, 1: 3.0, 2: 10.0}  # one run had the machine to share
    folder = made_up(
        tmp_path, lambda run: ended(run, 0.5, cpu_seconds=seconds[run.seed]), axes=AXES, seeds=[0, 1, 2]
    )
    assert [row["CPU seconds"] for row in written(folder, "costs.csv")] == ["5", "5"]
    [row, _] = written(folder, "costs-median.csv")
    assert (row[""], row["CPU seconds"], row["peak memory, MiB"]) == ("short", "3", "100")
    assert "| CPU seconds |" in (folder.path / "report" / "costs-median.md").read_text()
    results = read_results(folder)
    assert results.time().total == 6 * 4.0


@pytest.mark.slow
def test_costs_of_several_conditions_are_not_averaged(tmp_path: Path) -> None:
    numbers = {"few": 7700, "many": 3850}  # a head of twice as many classes
    folder = made_up(
        tmp_path,
        lambda run: ended(run, 0.5, trained_parameters=numbers[run.cell["rows"]], cpu_seconds=run.seed),
        axes=AXES | {"rows": {"few": {}, "many": {"recipe.batch_size": 4}}},
        compare="method",
        seeds=[0, 1, 5],
    )
    expected = {"few, short": "7,700", "few, long": "7,700", "many, short": "3,850", "many, long": "3,850"}
    for name, seconds in (("costs.csv", "2"), ("costs-median.csv", "1")):
        rows = written(folder, name)
        assert {row[""]: row["trained parameters"] for row in rows} == expected
        assert {row["CPU seconds"] for row in rows} == {seconds}
    results = read_results(folder)
    assert results.cost("short", "trained_parameters") == 5775  # a picture has a point for each line


def test_the_paired_test_is_a_file_too(tmp_path: Path) -> None:
    def facts(run: Any) -> dict[str, Any]:
        gain = 0.1 + 0.01 * run.seed if run.cell["method"] == "short" else 0.0
        return ended(run, 0.5 + gain)

    folder = made_up(tmp_path, facts, axes=AXES, seeds=[0, 1, 2])
    [row] = written(folder, "comparisons.csv")
    assert row["compared (A − B)"] == "short − long"
    assert row["difference"] == in_words(summarize([0.1 + 0.01 * seed for seed in (0, 1, 2)]), "+")
    assert (row["pairs"], row["p"]) == ("3", "0.25")
    assert {"comparisons.md", "comparisons.tex"} <= {path.name for path in (folder.path / "report").iterdir()}


def test_what_was_chosen_is_a_file_too(tmp_path: Path) -> None:
    def facts(run: Any) -> dict[str, Any]:
        return ended(run, {0.01: 0.4, 0.1: 0.7}[run.chosen["recipe.learning_rate"]])

    folder = made_up(
        tmp_path,
        facts,
        data={"train": "train.csv", "validation": "validation.csv", "test": "test.csv"},
        select={"recipe.learning_rate": [0.01, 0.1]},
    )
    rows = written(folder, "choices.csv")
    assert [(row["settings"], row["validation"], row["chosen"]) for row in rows] == [
        ("recipe.learning_rate 0.01", "0.400", ""),
        ("recipe.learning_rate 0.1", "0.700", "chosen"),
    ]


@pytest.mark.slow
def test_confusions_of_every_data_set_are_a_file_and_on_the_page(tmp_path: Path) -> None:
    folder = made_up(
        tmp_path,
        lambda run: ended(run, 0.5),
        axes=AXES,
        seeds=[0, 1],
        protocol={"name": "domain-shift", "domains": {"hotels": "hotels.csv"}},
    )
    rows = written(folder, "confusions.csv")
    assert [row["rows"] for row in rows if row["line"] == "long" and row["data"] == "hotels"] == [
        "14",
        "6",
        "20",
    ]
    page = (folder.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "<summary>long, hotels</summary>" in page
    assert "<summary>long, test</summary>" in page


def test_cells_run_nothing_and_break_no_row() -> None:
    cells = [
        '=HYPERLINK("http://x")',
        "@SUM(1)",
        "\tx",
        "+1+cmd|' /C calc'!A0",
        "-A1",
        "-0.5",
        "+0.1 ± 0.02 (3)",
    ]
    rows = list(csv.reader(as_csv((["", "a"], [[cell, "1"] for cell in cells])).splitlines()))
    assert [row[0] for row in rows[1:]] == [*(f"'{cell}" for cell in cells[:5]), *cells[5:]]
    table = (["", "a"], [["[0.9, 0.99]", "1"], ["*", "2"], ["a\nb|c\\|d", "3"], ["<img src=x>", "4"]])
    lines = as_latex(table).splitlines()
    assert len(lines) == 6 + 4
    assert not any(line.startswith(("[", "*")) for line in lines)
    lines = as_markdown(table).splitlines()
    assert len(lines) == 2 + 4
    assert lines[4] == r"| a b\|c\\\|d | 3 |"
    assert "<img" not in lines[5]
    marks = (["", "a"], [["![x](http://x)", "1"], ["*a* `b` &lt;", "2"], ["A − B < C|D", "3"]])
    lines = as_markdown(marks).splitlines()
    assert "](" not in lines[2]
    assert lines[3] == r"| \*a\* \`b\` &amp;lt; | 2 |"
    escapes = (["", "a"], [["\x1b[2J", "1"]])
    assert not any("\x1b" in written(escapes) for written in (as_csv, as_markdown, as_latex))
    assert as_latex(marks).splitlines()[6] == r"A $-$ B \textless{} C\textbar{}D & 3 \\"
