"""The playground: one page that asks the server's own routes, in a real browser."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

import softprompt as sp
from softprompt.pages import data_url
from softprompt.serving import Engine, Settings
from softprompt.serving.keys import Key, Keyring
from softprompt.serving.server import BackgroundServer
from tests.axe import axe_script, violations
from tests.browser import CHROMIUM, Browser, browser
from tests.tolerances import assert_equal_up_to_rounding

in_a_browser = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium"),
]


AT = "document.getElementById('prompt')"
WITH = "document.querySelector('#with .body')"
WITHOUT = "document.querySelector('#without .body')"
IDLE = "!document.getElementById('go').disabled"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def wait_for(tab: Browser, expression: str) -> Any:
    end = time.monotonic() + 30
    while not (found := tab.value(expression)):
        assert time.monotonic() < end, (expression, tab.complaints, tab.value("document.body.innerText"))
        time.sleep(0.02)
    return found


def choose(tab: Browser, name: str) -> None:
    wait_for(tab, f"[...{AT}.options].some((one) => one.value === {json.dumps(name)})")
    tab.value(f"{AT}.value = {json.dumps(name)}; {AT}.dispatchEvent(new Event('change'))")


def ask(tab: Browser, **values: str) -> None:
    for field, value in values.items():
        tab.value(f"document.getElementById('field-{field}').value = {json.dumps(value)}")
    tab.value("document.getElementById('ask').requestSubmit()")


def test_the_page_needs_nothing_else_and_says_nothing_of_the_server(http: httpx2.Client) -> None:
    answer = http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-frame-options"] == "DENY"
    text = answer.text
    assert "{{" not in text
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert "mood" not in text
    assert "innerHTML" not in text


class TestInABrowser:
    pytestmark = in_a_browser

    def test_a_class_is_shown_as_bars_beside_the_backbone_alone(
        self, tab: Browser, server: BackgroundServer, http: httpx2.Client
    ) -> None:
        tab.open(server.address, width=1280, dark=False)
        choose(tab, "mood")
        tab.value("document.getElementById('compare').checked = true")
        ask(tab, text="the film")
        wait_for(tab, f"{IDLE} && {WITHOUT}.querySelectorAll('li').length == 2")
        for body, alone in ((WITH, False), (WITHOUT, True)):
            answer = http.post(
                "/v1/classify", json={"model": "mood", "input": "the film", "without_prompt": alone}
            ).json()["data"][0]
            assert tab.value(f"{body}.querySelector('.label').textContent") == answer["label"]
            shown = tab.value(f"[...{body}.querySelectorAll('rect')].map((one) => one.getAttribute('width'))")
            expected = sorted((100 * share for share in answer["probabilities"].values()), reverse=True)
            assert_equal_up_to_rounding([float(one.rstrip("%")) for one in shown], expected)
        numbers = tab.value("document.querySelector('#with .numbers').textContent")
        assert re.fullmatch(r"\d+ ms · \d+ tokens read", numbers)
        assert not tab.complaints

    def test_text_is_streamed(self, tab: Browser, server: BackgroundServer, http: httpx2.Client) -> None:
        tab.open(server.address, width=390, dark=True)
        choose(tab, "story")
        ask(tab, text="the dog")
        numbers = wait_for(tab, f"{IDLE} && document.querySelector('#with .numbers').textContent")
        body = {"model": "story", "prompt": "the dog", "max_tokens": 64}
        expected = http.post("/v1/completions", json=body).json()["choices"][0]["text"]
        assert tab.value(f"{WITH}.textContent") == expected
        assert re.search(r"first text after \d+ ms .* tokens read, \d+ written", numbers)
        assert not tab.complaints

    def test_a_chat_two_fields_tags_and_numbers(self, tab: Browser, server: BackgroundServer) -> None:
        tab.open(server.address, width=1280, dark=True)
        for name, values, pattern in (
            ("chat", {"message": "hello"}, r"[\s\S]+"),
            ("pair", {"text": "the film", "other": "a book"}, r"(same|other|third)[\s\S]*%"),
            ("amount", {"text": "the film"}, r"-?\d.*"),
        ):
            choose(tab, name)
            ask(tab, **values)
            wait_for(tab, f"{IDLE} && !{WITH}.querySelector('.running')")
            assert re.fullmatch(pattern, tab.value(f"{WITH}.textContent")), name
        assert not tab.complaints

    def test_what_is_copied_gives_the_same_answer(self, tab: Browser, server: BackgroundServer) -> None:
        tab.open(server.address, width=1280, dark=False)
        for name in ("mood", "story"):
            choose(tab, name)
            tab.value("document.getElementById('field-text').value = `it's \"the\" dog`")
            ask(tab)
            wait_for(tab, f"{IDLE} && document.querySelector('#with .numbers').textContent")
            shown = tab.value(f"({WITH}.querySelector('.label') || {WITH}).textContent")
            script = tab.value("python(chosen())")
            ran = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
            )
            assert shown in ran.stdout
            command = tab.value("curl(chosen())")
            ran = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True
            )
            assert '"model":"' + name in ran.stdout.replace(" ", "")
        assert not tab.complaints

    def test_an_image_is_classified(self, tab: Browser, of_images: sp.TunedPrompt, tmp_path: Path) -> None:
        engine = Engine(of_images.backbone, settings=Settings(max_wait_ms=5))
        content = io.BytesIO()
        Image.new("RGB", (16, 12), (180, 80, 90)).save(content, "PNG")
        with BackgroundServer(engine) as running:
            running.call(engine.add("colour", of_images))
            tab.open(running.address, width=390, dark=False)
            choose(tab, "colour")
            url = data_url(content.getvalue(), "image/png")
            tab.value(
                f"(() => {{ const bytes = Uint8Array.from(atob({json.dumps(url.partition(',')[2])}), c => c.charCodeAt(0));"
                "const held = new DataTransfer(); held.items.add(new File([bytes], 'red.png', {type: 'image/png'}));"
                "document.querySelector('.drop').dispatchEvent(new DragEvent('drop', {dataTransfer: held})); })()"
            )
            wait_for(tab, "!document.querySelector('.drop img').hidden")
            ask(tab)
            label = wait_for(tab, f"{IDLE} && {WITH}.querySelector('.label')?.textContent")
            assert label == of_images.predict([Image.open(content)])[0].label
            assert not tab.complaints

    def test_a_key_is_asked_for(self, tab: Browser, of_images: sp.TunedPrompt, tmp_path: Path) -> None:
        secret = "a-long-secret-for-tests-0123456789"
        keys = Keyring((Key(name="someone", key=secret),))
        engine = Engine(of_images.backbone, settings=Settings(max_wait_ms=5))
        with BackgroundServer(engine, keys=keys) as running:
            running.call(engine.add("colour", of_images))
            tab.open(running.address, width=390, dark=False)
            wait_for(tab, "!document.getElementById('keyed').hidden")
            tab.value(f"document.getElementById('key').value = {json.dumps(secret)}")
            tab.value("document.getElementById('unlock').click()")
            choose(tab, "colour")
            assert secret not in tab.value("document.body.innerText + location.href")

    @pytest.mark.parametrize("dark", [False, True])
    @pytest.mark.parametrize("width", [1280, 390])
    def test_it_fits_the_window_and_everything_has_a_name(
        self, tab: Browser, server: BackgroundServer, width: int, dark: bool, tmp_path: Path
    ) -> None:
        tab.open(server.address, width=width, dark=dark)
        choose(tab, "mood")
        tab.value("document.getElementById('compare').checked = true")
        ask(tab, text="the film " * 30)
        wait_for(tab, f"{IDLE} && {WITHOUT}.querySelectorAll('li').length == 2")
        assert tab.value("document.documentElement.scrollWidth <= window.innerWidth")
        assert all(name for role in ("button", "textbox", "combobox") for name in tab.named(role))
        tab.screenshot(tmp_path / "playground.png")
        assert not tab.complaints

    @pytest.mark.real
    @pytest.mark.parametrize("dark", [False, True])
    def test_axe_finds_nothing(self, tab: Browser, server: BackgroundServer, dark: bool) -> None:
        tab.open(server.address, width=1280, dark=dark)
        choose(tab, "mood")
        ask(tab, text="the film")
        wait_for(tab, f"{IDLE} && {WITH}.querySelectorAll('li').length == 2")
        assert violations(tab, axe_script()) == []
