"""The library's HTML pages in a real browser: wide and narrow windows, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softprompt import VPT, fit
from softprompt.cli._error_page import error_page
from softprompt.cli._image_page import image_page
from softprompt.inspection.images import inspect_images
from softprompt.protocols.ensembling import RULES
from softprompt.studies import StudyFolder, plan
from softprompt.studies.ensembles import make_ensembles
from softprompt.studies.report import write_report
from tests.axe import axe_script, violations
from tests.browser import CHROMIUM, Browser, browser
from tests.cli.runs import as_json, softprompt
from tests.studies.made_up import ended, made_up
from tests.studies.small import write_study
from tests.tiny.vision import ROWS, TASK, vision_backbone

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning"),
]


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def axe() -> str:
    return axe_script()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A study's report with all that it can hold, an inspection of virtual tokens, one of a prompt for images."""
    place = tmp_path_factory.mktemp("pages")
    method = {"name": "prompt-tuning", "length": 2}
    long = "Prompt Tuning with two virtual tokens and_a_name_without_a_place_to_break_it"
    study = write_study(
        place / "study.yaml",
        title="Methods_on_a_small_task_with_a_title_that_has_no_place_to_break_it and more",
        axes={
            "method": {name: {"method": name} for name in ("zero-shot", "linear-probe")}
            | {long: {"method": method}},
            "recipe.steps": [2, 4],
        },
        select={"recipe.learning_rate": [0.01, 0.3]},
    )
    out = place / "out"
    softprompt("compare", study, "-o", out, "--quiet")  # a probe has no place here, and says so in the report
    as_json("report", out)
    [prompt, *_] = [path for path in (out / "runs").iterdir() if path.name.startswith("Prompt")]
    words, images = place / "words.html", place / "images.html"
    as_json("inspect", prompt, "--html", words)
    tuned = fit(vision_backbone(), TASK, VPT(length=3), list(ROWS[:12]), steps=2, progress=False)
    images.write_text(image_page(inspect_images(tuned, list(ROWS[:2]), top=3), 3), encoding="utf-8")
    everything = place / "everything"
    write_report(everything_at_once(everything), everything / "report")
    errors = place / "errors.html"
    texts = [
        "It came <b>late</b> again",
        "=1+1",
        "a word that is much too long to be broken " + 9 * "anywhere",
    ]
    answers = {"right": "delivery", "predicted": "praise", "probability_of_right": 0.1}
    wrong = [{"text": text, "id": i, "confidence": 0.9 - i / 5, **answers} for i, text in enumerate(texts)]
    facts = {"Method": "prompt-tuning"}
    errors.write_text(
        error_page("prompt on rows.csv", wrong, [{}] * 40, fields=["text"], facts=facts), encoding="utf-8"
    )
    return {
        "report": out / "report" / "index.html",
        "everything": everything / "report" / "index.html",
        "words": words,
        "images": images,
        "errors": errors,
    }


def everything_at_once(folder: Path) -> StudyFolder:
    """A study of every kind of run there is, with results that were made up."""
    labels = ["red", "blue", "green", "grey"]
    head = {"name": "image-classification", "labels": labels}
    texts = {"name": "image-text-classification", "labels": labels, "template": "a picture of a {}."}
    kinds = {
        "two tasks": {
            "task": head,
            "protocol": {"name": "class-incremental", "tasks": 2},
            "method": "linear-probe",
        },
        "two halves": {"task": texts, "protocol": "base-to-new", "method": {"name": "coop", "length": 2}},
        "hotels and products": {
            "protocol": {
                "name": "domain-shift",
                "domains": {"hotels": "hotels.csv", "products": "products.csv"},
            }
        },
    }

    def facts(run: Any) -> dict[str, Any]:
        kind, score = run.cell["kind"], 0.6 + 0.1 * (run.cell["method"] == "long") + 0.01 * run.seed
        if kind == "hotels and products":
            return ended(run, score)
        task = {"accuracy_matrix": [[1.0], [0.2, 0.99]], "final_average": score, "incremental_average": 0.8}
        task |= {"learning_accuracy": 0.9, "forgetting": 0.8, "backward_transfer": -0.8}
        halves = {"base": 0.9, "new": 0.5, "harmonic_mean": score}
        main = "accuracy" if kind == "two tasks" else "harmonic_mean"
        metrics = {main: score, **(task if kind == "two tasks" else halves)}
        return ended(run, score) | {"main_metric": main, "metrics": {"test": metrics}, "evaluations": []}

    methods = {"short": {}, "long": {"recipe.steps": 8}}
    axes = {"method": methods, "kind": kinds, "recipe.weight_decay": [0.0, 0.1]}
    found = made_up(folder, facts, title="Everything", axes=axes, seeds=[0, 1, 2], ensembles=True)
    judged = {"metric": "accuracy", **dict.fromkeys(RULES, 0.7), "mean": 0.65, "best": 0.7}
    make_ensembles(plan(found.study(), found.outcome), found, lambda runs: judged, print)
    return found


NAMES = ["report", "everything", "words", "images", "errors"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_its_window_and_can_be_read(
    tab: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, dark: bool
) -> None:
    tab.open(pages[name], width=width, dark=dark)
    tab.screenshot(tmp_path / f"{name}-{width}-{'dark' if dark else 'light'}.png")  # to be looked at
    assert tab.complaints == []
    assert tab.value("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
    ink, paper = (
        tab.value(f"getComputedStyle(document.body).{part}") for part in ("color", "backgroundColor")
    )
    assert contrast(ink, paper) >= 7  # WCAG 2.2, level AAA
    assert (luminance(paper) < 0.1) == dark
    assert all(tab.named("image"))
    assert all(tab.named("region"))
    # What is said of a table or a picture is never cut off at the window's edge.
    edges = "[...document.querySelectorAll('p, dd, figcaption, h1, h2')].map(e => e.getBoundingClientRect().right)"
    assert max(tab.value(edges)) <= width
    for text, colour, papers in tab.value(_COLOURS):
        assert contrast(colour, *papers) >= 4.5, (text, colour, papers)  # AA, on whatever each text stands


@pytest.mark.real
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_wrong(
    tab: Browser, pages: dict[str, Path], axe: str, name: str, width: int, dark: bool
) -> None:
    tab.open(pages[name], width=width, dark=dark)
    assert violations(tab, axe) == []
    tab.value("for (const part of document.querySelectorAll('details')) part.open = true")
    assert violations(tab, axe) == []
    if name == "images":
        tab.value("document.querySelector('[data-dialog]').click()")
        assert violations(tab, axe) == []
    assert tab.complaints == []


def test_a_table_sorts_by_its_numbers_with_the_keyboard(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["everything"], width=1280, dark=False)
    head = "document.querySelector('table[aria-label=Costs] th:nth-child(2)')"
    column = f"[...{head}.closest('table').tBodies[0].rows].map(row => parseFloat(row.cells[1].textContent))"
    tab.value(f"{head}.querySelector('button').focus()")
    for order, sign in (("descending", -1), ("ascending", 1)):
        tab.press("Enter")
        assert tab.value(f"{head}.getAttribute('aria-sort')") == order
        found = tab.value(column)
        assert found == sorted(found, key=lambda number: sign * number)


def test_points_say_what_they_are_under_the_pointer(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["everything"], width=1280, dark=False)
    for mark in (".seed", "svg [data-series] [data-tip]"):
        place = tab.value(
            f"(mark => {{ mark.scrollIntoView({{block: 'center'}}); const at = mark.getBoundingClientRect();"
            f" return [at.x + at.width / 2, at.y + at.height / 2]; }})(document.querySelector('{mark}'))"
        )
        tab.point_at(*place)
        assert tab.value("document.querySelector('#tip').hidden") is False
        assert tab.value("document.querySelector('#tip').textContent").startswith(("short", "long"))
    tab.point_at(1, 1)
    assert tab.value("document.querySelector('#tip').hidden") is True


def test_every_control_is_reached_with_the_tab_key(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["words"], width=1280, dark=False)
    reached = set()
    for _ in range(60):
        tab.press("Tab")
        reached.add(tab.value("document.activeElement.tagName + (document.activeElement.type || '')"))
    assert {"A", "SELECTselect-one", "INPUTsearch", "SUMMARY"} <= reached
    outline = (
        "(e => { e.focus(); return getComputedStyle(e).outlineStyle; })(document.querySelector('select'))"
    )
    assert tab.value(outline) != "none"


def test_filters_show_the_rows_that_fit(tab: Browser, pages: dict[str, Path]) -> None:
    tab.open(pages["errors"], width=390, dark=False)
    shown = "[...document.querySelectorAll('[data-item]')].filter(item => !item.hidden).length"
    assert tab.value(shown) == 3
    search = "document.querySelector('input[type=search]')"
    for words, count in (("late", 1), ("nothing like it", 0), ("", 3)):
        tab.value(
            f"{search}.value = '{words}'; {search}.dispatchEvent(new Event('input', {{bubbles: true}}))"
        )
        assert tab.value(shown) == count
    assert tab.value("document.querySelector('output').textContent") == "3 of 3 shown"


def test_a_picture_opens_with_its_attention_and_escape_closes_it(
    tab: Browser, pages: dict[str, Path]
) -> None:
    tab.open(pages["images"], width=1280, dark=False)
    tab.value("document.querySelector('[data-dialog]').focus()")
    tab.press("Enter")
    assert tab.value("document.querySelector('dialog').open") is True
    assert tab.value("document.querySelector('dialog .under').src").startswith("data:image/")
    slider = "document.querySelector('dialog input[type=range]')"
    tab.value(f"{slider}.value = 1; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))")
    assert tab.value("document.querySelector('dialog img.heat:not([hidden])').dataset.layer") == "1"
    tab.press("Escape")
    assert tab.value("document.querySelector('dialog').open") is False


def test_the_page_with_everything_has_everything(pages: dict[str, Path]) -> None:
    text = pages["everything"].read_text(encoding="utf-8")
    for title in (
        "Scores",
        "Paired comparison",
        "Costs",
        "Score by weight_decay",
        "Learning curves",
        "Accuracy after each task",
        "Confusion matrices",
        "Base and new classes",
        "Ensembles of seeds",
        "Classes in tasks",
        "Accuracy matrices",
    ):
        assert f">{title}</h2>" in text, title


_COLOURS = """
[...new Set([...document.querySelectorAll('td, th, p, dd, dt, li, caption, figcaption, summary, pre, h1, h2')].map(e => {
  const papers = [];
  for (let around = e; around; around = around.parentElement) papers.unshift(getComputedStyle(around).backgroundColor);
  return JSON.stringify([e.textContent.slice(0, 20), getComputedStyle(e).color, papers]);
}))].map(JSON.parse)
"""
"""Of every text in the page its beginning, its colour, and what it stands on, from below."""


def channels(colour: str) -> list[float]:
    """Red, green, blue between 0 and 255 and alpha of "rgb(26, 26, 26)" or "rgba(26, 26, 26, 0.5)"."""
    parts = [float(part) for part in colour.partition("(")[2].removesuffix(")").split(",")]
    return parts if len(parts) == 4 else [*parts, 1.0]


def luminance(*papers: str) -> float:
    """Relative luminance between 0 and 1 of colours that lie on each other, the lowest first."""
    shown = [255.0] * 3
    for paper in papers:
        *parts, alpha = channels(paper)
        shown = [alpha * part + (1 - alpha) * under for part, under in zip(parts, shown, strict=True)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in (c / 255 for c in shown)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(ink: str, *papers: str) -> float:
    bright, dim = sorted((luminance(ink), luminance(*papers)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
