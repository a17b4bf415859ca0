"""The page of a study: names that mean harm, and studies that are large."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from softprompt.studies import page as page_module
from softprompt.studies.report import write_report
from softprompt.studies.results import read_results
from tests.studies.made_up import ended, made_up

HOSTILE = "\x1b[2J</script><b>$x_$|`=1+1`\u202e"


def written(folder: Any) -> tuple[str, list[Path]]:
    files = write_report(folder, folder.path / "report")
    return files[0].read_text(encoding="utf-8"), files


@pytest.mark.slow
def test_names_write_nothing_into_any_file(tmp_path: Path) -> None:
    axes = {"method": {HOSTILE: {}, "=cmd": {"method.length": 3}}, "recipe.weight_decay": [0.0, 0.1]}
    folder = made_up(tmp_path, lambda run: ended(run, 0.5), axes=axes, seeds=[0, 1], title=HOSTILE)
    text, files = written(folder)
    assert text.count("</script>") == 1
    assert "<b>$" not in text
    for file in files:
        if file.suffix != ".png":
            assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", file.read_text(encoding="utf-8")), (
                file.name
            )
    lines = (folder.path / "report" / "scores.csv").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("'=cmd") for line in lines)


@pytest.mark.slow
def test_large_pictures_become_smaller_or_are_left_to_their_files(tmp_path: Path, monkeypatch: Any) -> None:
    folder = made_up(
        tmp_path, lambda run: ended(run, 0.5), axes={"method": {"a": {}, "b": {"method.length": 3}}}
    )
    monkeypatch.setattr(page_module, "_LARGEST_SVG", 10)
    text, _ = written(folder)
    assert '<img class="drawn" alt="' in text
    monkeypatch.setattr(page_module, "_ROOM", 10)
    text, _ = written(folder)
    assert "<svg" not in text
    assert "learning-curves.svg lies beside it" in text


def test_of_many_labels_the_commonest_confusions_are_listed(tmp_path: Path) -> None:
    labels = [f"kind {i}" for i in range(20)]
    counts = {gold: {given: int(gold == given) for given in labels} for gold in labels}
    counts["kind 3"]["kind 4"] = 7

    def facts(run: Any) -> Any:
        metrics = {"accuracy": 0.5, "majority_accuracy": 0.05, "confusion": counts}
        return ended(run, 0.5, metrics={"test": metrics})

    text, _ = written(made_up(tmp_path, facts))
    section = text[text.index(">Confusion matrices</h2>") :]
    assert re.search(r"kind 3</bdi></td><td class=\"text\"><bdi>kind 4</bdi></td><td><bdi>7", section)
    assert 'class="heat"' not in section


def test_a_page_begins_with_the_finding_and_ends_with_how_it_was_made(tmp_path: Path) -> None:
    folder = made_up(tmp_path, lambda run: ended(run, 0.5))
    text, _ = written(folder)
    titles = re.findall(r"<h2 id=[^>]*>(.*?)</h2>", text)
    assert titles[:2] == ["Scores", "Table of scores"]
    assert titles[-1] == "How it was made"
    assert text.index('class="finding"') < text.index("<h2")
    assert re.findall(r'<li><a href="#([^"]*)"', text) == re.findall(r'<h2 id="([^"]*)"', text)
    assert read_results(folder).finals
