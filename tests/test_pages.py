"""The pages that the library writes, as a real browser shows them, at a desk and on a phone, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from softprompt import VPT, fit
from softprompt.cli._image_page import image_page
from softprompt.image_inspection import inspect_images
from tests.browser import CHROMIUM, Browser, browser
from tests.cli.runs import as_json, softprompt
from tests.studies.small import write_study
from tests.tiny_vision import ROWS, TASK, vision_backbone

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
    return {"report": out / "report" / "index.html", "words": words, "images": images}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("name", ["report", "words", "images"])
def test_a_page_fits_its_window_and_can_be_read(
    tab: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    tab.open(pages[name], width=width, dark=dark)
    assert tab.complaints == []
    assert tab.value("document.documentElement.scrollWidth") <= width  # wide tables scroll by themselves
    ink, paper = (
        tab.value(f"getComputedStyle(document.body).{part}") for part in ("color", "backgroundColor")
    )
    assert contrast(ink, paper) >= 7  # WCAG 2.2, level AAA
    assert (luminance(paper) < 0.1) == dark
    pictures = tab.named("image")
    assert pictures
    assert all(pictures)
    assert all(tab.named("region"))
    # What is said of a table or a picture is never cut off at the window's edge.
    edges = "[...document.querySelectorAll('p, dd, figcaption, h1, h2')].map(e => e.getBoundingClientRect().right)"
    assert max(tab.value(edges)) <= width


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(26, 26, 26)", between 0 and 1."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)
