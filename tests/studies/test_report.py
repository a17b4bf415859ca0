"""The report: what it says, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from softprompt.studies import StudyFolder
from softprompt.studies.comparisons import comparisons
from softprompt.studies.doubts import doubts
from softprompt.studies.figures import plots
from softprompt.studies.results import read_results
from softprompt.studies.statistics import summarize_scores
from softprompt.studies.tables import in_words
from tests.cli.runs import as_json, softprompt, write_rows
from tests.studies.small import write_study

pytestmark = pytest.mark.slow  # a study is made for it, and all its pictures are drawn twice

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, tables as lists of rows, text; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self._cell: list[str] | None = None
        text = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.tables[-1][-1].append("".join(self._cell or []))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with its report."""
    place = tmp_path_factory.mktemp("reported")
    other = write_rows(
        place / "other.jsonl", [{"text": "a <b> place", "label": "pos"}, {"text": "cold", "label": "neg"}]
    )
    study = write_study(
        place / "study.yaml",
        title="Prompts <on> & films",
        axes={
            "method": {
                "nothing": {"method": "zero-shot", "select": {}},
                "pt": {"method": {"name": "prompt-tuning", "length": 2}},
                "probe": {"method": "linear-probe", "select": {}},
            },
            "recipe.steps": [2, 4],
        },
        seeds=[0, 1, 2],
        select={"recipe.learning_rate": [0.01, 0.1]},
        protocol={"name": "domain-shift", "domains": {"elsewhere": str(other)}},
    )
    assert softprompt("compare", study, "-o", place / "out", "--quiet").exit_code == 1  # a probe needs a head
    as_json("report", place / "out")
    return place / "out"


@pytest.fixture(scope="module")
def page(reported: Path) -> Page:
    return Page((reported / "report" / "index.html").read_text())


def test_the_page_needs_nothing_else(reported: Path, page: Page) -> None:
    text = (reported / "report" / "index.html").read_text()
    assert not re.search(r"https?://|<link|<img|@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    policy = next(a for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    [script] = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    assert policy["content"] == allowed
    assert len(text) < 5_000_000


def test_it_says_how_the_time_was_spent(reported: Path, page: Page) -> None:
    spent = as_json("report", reported)["seconds"]
    assert spent["total"] >= spent["steps"] + spent["evaluation"]
    ended = [
        facts
        for path in reported.glob("runs/*/result.json")
        if (facts := json.loads(path.read_text()))["status"] == "finished"
    ]
    assert spent["steps"] == pytest.approx(sum(facts["seconds"] for facts in ended))
    assert spent["total"] == pytest.approx(sum(facts["wall_seconds"] for facts in ended))
    assert re.search(r"\d+ s in training steps, \d+ s in evaluations, \d+ s in all else", page.text)


def test_every_picture_and_table_has_a_name(page: Page) -> None:
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(pictures) >= 4
    assert all(a["role"] == "img" and a["aria-label"] for a in pictures)
    regions = [a for tag, a in page.tags if a.get("role") == "region"]
    assert all(a["aria-label"] for a in regions)
    tables = [attributes for tag, attributes in page.tags if tag == "table"]
    captions = [tag for tag, _ in page.tags if tag == "caption"]
    assert len(tables) == len([a for a in tables if a.get("aria-label")]) + len(captions)


def test_texts_of_the_study_are_escaped(reported: Path, page: Page) -> None:
    assert "Prompts <on> & films" in page.text
    assert "<on>" not in (reported / "report" / "index.html").read_text()


def test_the_scores_are_those_of_the_runs(reported: Path, page: Page) -> None:
    heads, *rows = page.tables[0]
    assert heads == [
        "name",
        *(f"steps {n}, {data}, accuracy" for n in (2, 4) for data in ("test", "elsewhere")),
    ]
    assert [row[0] for row in rows] == ["nothing", "pt", "always the commonest label"]
    results = read_results(StudyFolder(reported))
    scores = list(results.scores("pt", "steps 4", "test").values())
    assert len(scores) == 3
    assert rows[1][3] == in_words(summarize_scores(scores, rows=16))
    assert rows[1][3].startswith(f"{statistics.fmean(scores):.3f} ± ")
    assert rows[2][1] == "0.500"


def test_pairs_are_seeds_and_not_conditions_of_one_task(page: Page) -> None:
    comparison = next(table for table in page.tables if table[0][0] == "compared (A − B)")
    assert comparison[1][0] == "nothing − pt"
    assert comparison[1][1] == "accuracy"
    assert comparison[1][3] == "3"  # two conditions and two data sets are averaged for each of three seeds
    assert 0 < float(comparison[1][4]) <= 1


def test_it_says_what_was_chosen_on_what(page: Page) -> None:
    chosen = next(table for table in page.tables if table[0][-1] == "chosen")
    assert len(chosen) == 1 + 2 * 2
    assert sum(row[-1] == "chosen" for row in chosen[1:]) == 2
    assert all("recipe.learning_rate" in row[1] for row in chosen[1:])


def test_it_tells_of_failed_runs_with_their_traceback_and_of_few_seeds(page: Page) -> None:
    assert "linear-probe trains a head" in page.text
    assert "Traceback (most recent call last)" in page.text
    assert "6 failed or diverged" in page.text


def test_confusions_are_summed_over_seeds(page: Page) -> None:
    matrix = next(table for table in page.tables if table[0] == ["", "neg", "pos"])
    assert sum(int(cell) for row in matrix[1:] for cell in row[1:]) == 3 * 16


def test_classes_that_come_in_tasks_leave_a_matrix_of_accuracies(tmp_path: Path) -> None:
    rows = [
        {"text": f"the {thing} is {word}", "label": word}
        for thing in ("film", "book", "story", "plot")
        for word in ("good", "bad", "great", "awful")
    ]
    study = write_study(
        tmp_path / "study.yaml",
        task={
            "name": "sequence-classification",
            "template": "{text}",
            "labels": ["good", "bad", "great", "awful"],
        },
        axes={"method": ["linear-probe", {"name": "prompt-tuning", "length": 2}]},
        protocol={"name": "class-incremental", "tasks": 2},
    )
    write_rows(tmp_path / "rows.jsonl", rows)
    assert as_json("compare", study, "-o", tmp_path / "out", "--quiet")["failed"] == []
    results = read_results(StudyFolder(tmp_path / "out"))
    orders = set()
    for result in results.finals:
        test = result.outcome.facts["metrics"]["test"]
        assert [len(row) for row in test["accuracy_matrix"]] == [1, 2]
        assert result.score("test") == statistics.fmean(test["accuracy_matrix"][-1])
        assert sorted(label for task in test["tasks"] for label in task) == ["awful", "bad", "good", "great"]
        orders.add((result.run.seed, str(test["tasks"])))
        facts = result.outcome.facts
        assert facts["steps_made"] == 2 * 4
        assert facts["times"]["steps"] == pytest.approx(facts["seconds"])
        assert 0 < facts["times"]["evaluation"] < facts["wall_seconds"]
        history = StudyFolder(tmp_path / "out").history(result.run.id)
        assert [(record["task"], record["step"]) for record in history] == [(i // 4, i + 1) for i in range(8)]
        assert not (StudyFolder(tmp_path / "out").run(result.run.id) / "checkpoint").exists()
    assert len(orders) == 2  # one for each seed, whatever the method
    as_json("report", tmp_path / "out")
    page = Page((tmp_path / "out" / "report" / "index.html").read_text())
    assert "Accuracy matrices" in page.text
    assert re.search(r"\d+ s in training steps", page.text)
    assert (tmp_path / "out" / "report" / "training-loss.png").exists()
    found = [table for table in page.tables if table[0] == ["", "task 1", "task 2"]]
    assert len(found) == 2  # a line each, over both seeds
    first = results.of(results.lines[0])
    mean = statistics.fmean(r.outcome.facts["metrics"]["test"]["accuracy_matrix"][1][0] for r in first)
    assert found[0][1][2] == ""
    assert found[0][2][:2] == ["after task 2", f"{mean:.3f}"]
    tasks = list(csv.DictReader((tmp_path / "out" / "report" / "tasks.csv").read_text().splitlines()))
    forgotten = [r.outcome.facts["metrics"]["test"]["forgetting"] for r in first]
    assert tasks[0][""] == results.lines[0]
    assert tasks[0]["forgetting"] == f"{statistics.fmean(forgotten):.3f} ± {statistics.stdev(forgotten):.3f}"
    assert next(table for table in page.tables if "forgetting" in table[0])[1][0] == results.lines[0]


def test_tables_and_plots_lie_beside_the_page(reported: Path) -> None:
    files = {path.name for path in (reported / "report").iterdir()}
    for name in ("scores", "costs"):
        assert {f"{name}.csv", f"{name}.md", f"{name}.tex"} <= files
    for name in ("learning-curves", "by-recipe-steps", "score-by-trained-parameters"):
        assert (reported / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (reported / "report" / f"{name}.svg").read_text().startswith("<?xml")
    assert (reported / "report" / "scores.md").read_text().count("\n") == 5
    assert r"$\pm$" in (reported / "report" / "scores.tex").read_text()
    rows = list(csv.DictReader(io.StringIO((reported / "report" / "runs.csv").read_text())))
    assert len(rows) == 4 + 12 + 6
    final = next(
        row
        for row in rows
        if row["status"] == "finished" and row["method"] == "pt" and row["stage"] == "final"
    )
    assert 0 <= float(final["test"]) <= 1
    assert 0 <= float(final["elsewhere"]) <= 1
    assert final["trained_parameters"] == "96.0"
    assert final["chosen"].startswith("recipe.learning_rate=")


def test_a_second_report_is_the_same_to_the_byte(reported: Path, tmp_path: Path) -> None:
    as_json("report", reported, "-o", tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (reported / "report" / path.name).read_bytes(), path.name


def test_an_unfinished_study_says_so(reported: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((reported / "study.yaml").read_text())
    (tmp_path / "runs").symlink_to(reported / "runs")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**values, "seeds": [0, 1, 2, 3]}))
    assert "6 runs have not been made yet" in doubts(read_results(StudyFolder(tmp_path)))[0]


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    result = softprompt("report", tmp_path)
    assert result.exit_code == 1
    assert "holds no study" in result.stderr


def test_scores_of_different_metrics_are_not_mixed(reported: Path) -> None:
    results = read_results(StudyFolder(reported))
    halves = [
        replace(r, outcome=replace(r.outcome, facts={**r.outcome.facts, "main_metric": "macro_f1"}))
        if r.condition == "steps 2"
        else r
        for r in results.finals
    ]
    mixed = replace(results, finals=halves)
    assert mixed.mean("pt") is None
    found = comparisons(mixed)
    assert [(c.metric, c.difference.count) for c in found] == [("macro_f1", 3), ("accuracy", 3)]
    assert not any(plot.name.startswith("score-by") for plot in plots(mixed))


def test_what_trains_nothing_is_paired_with_every_seed(reported: Path) -> None:
    results = read_results(StudyFolder(reported))
    once = replace(results, finals=[r for r in results.finals if r.line == "pt" or r.run.seed == 0])
    [few], [all_seeds] = comparisons(once), comparisons(results)
    assert few == all_seeds
