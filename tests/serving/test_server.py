"""Clients that do harm, by mistake or not. Each gets a clear answer or is given up; others do not notice."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx2
import pytest

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.serving import Engine, Settings
from softprompt.serving.server import BackgroundServer

HEAD = "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@pytest.fixture(autouse=True)
def others_are_unharmed(server: BackgroundServer, http: httpx2.Client) -> Iterator[None]:
    yield
    answer = http.post("/v1/classify", json={"model": "mood", "input": "the dog"})
    assert answer.status_code == 200
    until(lambda: server.engine.under_way == 0)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that another thread does; a minute means that it never will."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def connected(server: BackgroundServer, receives: int | None = None) -> socket.socket:
    """A connection; `receives`: bytes that it takes before they are read."""
    address = urlsplit(server.address)
    opened = socket.socket()
    opened.settimeout(60)
    if receives is not None:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receives)
    opened.connect((address.hostname, address.port))
    return opened


def answer_to(server: BackgroundServer, sent: bytes) -> bytes:
    """All that the server says until it closes the connection."""
    with connected(server) as opened:
        opened.sendall(sent)
        return b"".join(iter(lambda: opened.recv(65536), b""))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b'{"model": "mood", "input": "\xff"}', "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"model": "mood", "input": ' + b"[" * 5000 + b"]" * 5000 + b"}", "no JSON"),
        (b'{"model": "mood", "input": {"text": ' + b"[" * 150 + b"]" * 150 + b"}}", "text"),
        (b'{"model": 1e999, "input": "a"}', "model"),
        (b'{"model": "mood", "input": "\\ud800"}', "no JSON"),
        (b'{"model": "mood", "input": {"text": null}}', "text"),
        (b"null", "object"),
    ],
)
def test_what_is_no_json_or_of_the_wrong_type(http: httpx2.Client, content: bytes, said: str) -> None:
    answer = http.post("/v1/classify", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_only_json_is_read_which_no_form_of_a_foreign_page_can_send(http: httpx2.Client, kind: str) -> None:
    content = json.dumps({"model": "mood", "input": "a"})
    answer = http.post("/v1/classify", content=content, headers={"content-type": kind})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_large(http: httpx2.Client, declared: bool) -> None:
    content = b'{"model": "mood", "input": "' + b"a" * 300_000 + b'"}'
    parts = iter([content[:100_000], content[100_000:]])
    answer = http.post(
        "/v1/classify",
        content=content if declared else parts,
        headers={"content-type": "application/json"},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_body_without_end_is_not_read_for_ever(server: BackgroundServer) -> None:
    size = 8 * server.engine.settings.max_body_bytes + 1
    sent = f"{HEAD}content-length: 100000000\r\n\r\n".encode() + b" " * size
    assert answer_to(server, sent).startswith(b"HTTP/1.1 413")


@pytest.fixture(scope="module")
def impatient(of_images: sp.TunedPrompt) -> Iterator[BackgroundServer]:
    """A server that waits for nobody. A client that is connected already, and sends at once, is served."""
    settings = Settings(body_seconds=0.2, stall_seconds=0.3)
    with (
        BackgroundServer(Engine(of_images.backbone, settings=settings)) as server,
        httpx2.Client(base_url=server.address) as client,
    ):
        assert client.get("/health").status_code == 200
        yield server
        assert client.get("/health").status_code == 200


def test_a_body_that_does_not_come_in_time(impatient: BackgroundServer) -> None:
    found = answer_to(impatient, f'{HEAD}content-length: 100\r\n\r\n{{"model"'.encode())
    assert found.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.2 seconds" in found


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nx-slow: "])
def test_a_head_that_does_not_come_in_time_is_given_up(impatient: BackgroundServer, sent: bytes) -> None:
    assert answer_to(impatient, sent) == b""


@pytest.mark.slow
def test_a_client_that_does_not_read_its_answers_is_given_up(impatient: BackgroundServer) -> None:
    with connected(impatient, receives=4096) as opened:
        opened.setblocking(False)
        asked = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100
        end = time.monotonic() + 60
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            while True:  # the server stops to read, and then ends the connection
                assert time.monotonic() < end
                try:
                    opened.send(asked)
                except BlockingIOError:
                    time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ["story", "prefix-story"])
def test_a_text_ends_when_its_client_goes(server: BackgroundServer, name: str, stream: bool) -> None:
    body = json.dumps({"model": name, "prompt": "the dog", "max_tokens": 90, "n": 4, "stream": stream})
    with connected(server) as opened:
        head = HEAD.replace("classify", "completions")
        opened.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        if stream:
            assert opened.recv(10) == b"HTTP/1.1 2"
        else:
            until(lambda: server.engine.under_way > 0)


@pytest.mark.slow
def test_many_connections_at_once(server: BackgroundServer) -> None:
    opened = [connected(server) for _ in range(200)]
    try:
        body = json.dumps({"model": "mood", "input": "the dog"})
        for one in opened:
            one.sendall(f"{HEAD}content-length: {len(body)}\r\n\r\n{body}".encode())
        assert {one.recv(12) for one in opened} == {b"HTTP/1.1 200"}
    finally:
        for one in opened:
            one.close()


def test_a_port_that_is_taken(server: BackgroundServer, backbone: CausalBackbone) -> None:
    port = urlsplit(server.address).port
    with pytest.raises(OSError, match="try another --port"):
        BackgroundServer(Engine(backbone), port=port)


def test_answers_are_not_held_back(server: BackgroundServer) -> None:
    host, _, port = server.address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))):
        # asyncio sends without delay on connections whose protocol is named, as that of the listening socket is.
        assert server.server.socket.proto == socket.IPPROTO_TCP
