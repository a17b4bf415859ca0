"""Two replicas on a cluster of this machine: the same answers, prompts that reach both, and one that is killed under load."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

import softprompt as sp
from softprompt.serving import Settings
from tests.cli.runs import write_backbone
from tests.tolerances import FLOAT32

pytest.importorskip("ray.serve")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def cluster(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from softprompt.serving.ray_replicas import Plan, RayServer

    place = tmp_path_factory.mktemp("ray")
    backbone = write_backbone(place / "backbone")
    served = place / "served"
    for name in ("mood", "story"):
        shutil.copytree(folder / name, served / name)
    shutil.copytree(folder / "calm", served / "more" / "calm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    opening = partial(sp.load_backbone, str(backbone), dtype="float32", device="cpu")
    with RayServer(Plan(opening, served, Settings(max_wait_ms=5)), replicas=2, port=port, cpus=0.1) as server:
        yield server


def replicas() -> list[Any]:
    """The processes of the replicas."""
    own = psutil.Process()
    return [one for one in own.children(recursive=True) if "ServeReplica" in " ".join(one.cmdline())]


@pytest.fixture
def http(cluster: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=cluster.address, timeout=60) as opened:
        yield opened


def test_replicas_answer_as_predict_does_and_stream(
    cluster: Any, http: httpx2.Client, prompts: Mapping[str, sp.TunedPrompt]
) -> None:
    expected = prompts["mood"].predict(["the film"])[0]
    for _ in range(10):
        found = http.post("/v1/classify", json={"model": "mood", "input": "the film"}).json()["data"][0]
        assert found["label"] == expected.label
        assert found["probabilities"] == pytest.approx(expected.probabilities, rel=FLOAT32)
    with openai.OpenAI(base_url=f"{cluster.address}/v1", api_key="none") as client:
        pieces = client.completions.create(model="story", prompt="the dog", stream=True)
        text = "".join(event.choices[0].text for event in pieces if event.choices)
    assert text == prompts["story"].predict(["the dog"])[0]


def test_prompts_that_come_and_go_reach_every_replica(http: httpx2.Client) -> None:
    def answered() -> set[int]:
        asked = {"model": "quiet", "input": "the film"}
        return {http.post("/v1/classify", json=asked).status_code for _ in range(20)}

    assert answered() == {404}
    assert http.post("/v1/prompts", json={"name": "quiet", "folder": "more/calm"}).status_code == 201
    assert answered() == {200}
    assert http.delete("/v1/prompts/quiet").status_code == 200
    assert answered() == {404}


def test_a_replica_that_is_killed_under_load_costs_what_was_in_it_and_that_is_asked_again(
    cluster: Any, prompts: Mapping[str, sp.TunedPrompt], http: httpx2.Client
) -> None:
    http.post("/v1/prompts", json={"name": "kept", "folder": "more/calm"}).raise_for_status()
    expected = prompts["story"].predict(["the dog"])[0]
    answers: list[str] = []
    until = time.monotonic() + 12

    def ask() -> None:
        with openai.OpenAI(base_url=f"{cluster.address}/v1", api_key="none", max_retries=8) as client:
            while time.monotonic() < until:
                answers.append(client.completions.create(model="story", prompt="the dog").choices[0].text)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for one in clients:
        one.start()
    time.sleep(2)
    before = {one.pid for one in replicas()}
    os.kill(min(before), signal.SIGKILL)
    for one in clients:
        one.join(timeout=120)
        assert not one.is_alive()
    assert len(answers) > 8
    assert set(answers) == {expected}
    end = time.monotonic() + 120
    while len({one.pid for one in replicas()} - {min(before)}) < 2:  # Ray starts another
        assert time.monotonic() < end
        time.sleep(0.2)
    # The new one has what the others were told before it was there.
    status = {
        http.post("/v1/classify", json={"model": "kept", "input": "the film"}).status_code for _ in range(30)
    }
    assert status == {200}
