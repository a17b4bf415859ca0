"""Images over HTTP: data URLs, and nothing that could be a path."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

import softprompt as sp
from softprompt.serving import Engine, Settings
from softprompt.serving.server import BackgroundServer
from tests.tiny.vision import picture


@pytest.fixture(scope="module")
def http(of_images: sp.TunedPrompt) -> Iterator[httpx2.Client]:
    engine = Engine(of_images.backbone, settings=Settings(max_pixels=10_000, max_wait_ms=5))
    with BackgroundServer(engine) as server:
        server.call(engine.add("colour", of_images))
        with httpx2.Client(base_url=server.address) as client:
            yield client


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def test_an_image_is_answered_as_predict_does(http: httpx2.Client, of_images: sp.TunedPrompt) -> None:
    image = picture(180, 80, 90)
    asked = [data_url(image), {"image": data_url(image), "label": "/etc/passwd"}]
    answer = http.post("/v1/classify", json={"model": "colour", "input": asked})
    (alone,) = of_images.predict([image])
    for one in answer.json()["data"]:
        assert one["probabilities"] == pytest.approx(alone.probabilities, abs=1e-5)
    assert http.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "way", ["path", "mapping", "file url", "web", "not base64", "not an image", "eps", "large"]
)
def test_nothing_else_is_read(http: httpx2.Client, tmp_path: Path, way: str) -> None:
    path = tmp_path / "a.png"
    picture(1, 2, 3).save(path)
    eps = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n").decode()
    value: Any = {
        "path": str(path),
        "mapping": {"image": {"path": str(path)}},
        "file url": f"file://{path}",
        "web": "http://localhost/a.png",
        "not base64": "data:image/png;base64,%%%",
        "not an image": "data:image/png;base64,aGVsbG8=",
        "eps": f"data:image/eps;base64,{eps}",
        "large": data_url(Image.new("RGB", (200, 100))),
    }[way]
    answer = http.post("/v1/classify", json={"model": "colour", "input": value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")


def test_a_request_that_runs_is_answered_before_the_server_ends(of_images: sp.TunedPrompt) -> None:
    engine = Engine(of_images.backbone, settings=Settings(max_wait_ms=400))
    answers: list[int] = []
    with BackgroundServer(engine) as server:
        server.call(engine.add("colour", of_images))
        body = {"model": "colour", "input": data_url(picture(1, 2, 3))}

        def ask() -> None:
            answers.append(httpx2.post(f"{server.address}/v1/classify", json=body).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        while not engine.under_way:
            asking.join(0.005)
    asking.join()
    assert answers == [200]
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.address}/health")
