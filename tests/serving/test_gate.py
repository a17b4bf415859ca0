"""What every request passes, on an app whose engine has not been started: nothing here needs an answer."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.serving import Engine
from softprompt.serving.app import create_app
from softprompt.serving.keys import Key, Keyring

SECRETS = {name: f"{name}-key-0123456789" for name in ("web", "boss", "slow")}


@pytest.fixture(scope="module")
def engine(backbone: CausalBackbone, folder: Path) -> Engine:
    engine = Engine(backbone, folder)
    asyncio.run(engine.look_again())
    return engine


@pytest.fixture(scope="module")
def keyed(engine: Engine) -> TestClient:
    keys = Keyring(
        (
            Key(name="web", key=SECRETS["web"], prompts=("mo*",)),
            Key(name="boss", key=SECRETS["boss"], manage=True),
            Key(name="slow", key=SECRETS["slow"], requests_per_minute=1),
        )
    )
    return TestClient(create_app(engine, keys=keys), base_url="http://localhost")


def bearer(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {SECRETS[name]}"}


def test_without_a_key_only_health_is_told(keyed: TestClient) -> None:
    assert keyed.get("/health").status_code == 200
    for path in ("/v1/models", "/metrics", "/v1/prompts", "/nothing", "//health", "/health/"):
        answer = keyed.get(f"http://localhost{path}")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.json()["error"]["code"] == "invalid_api_key"
    assert keyed.get("/v1/models", headers={"authorization": "Bearer wrong"}).status_code == 401


def test_a_key_sees_its_prompts_alone(keyed: TestClient, backbone: CausalBackbone) -> None:
    listed = keyed.get("/v1/models", headers=bearer("web")).json()["data"]
    assert [model["id"] for model in listed] == ["mood"]
    for name in ("story", "nothing", backbone.name, "mod"):
        answer = keyed.post("/v1/classify", json={"model": name, "input": "a"}, headers=bearer("web"))
        assert answer.status_code == 404
        assert "mood" not in answer.json()["error"]["message"]
    answer = keyed.post("/v1/prompts", json={"name": "mood"}, headers=bearer("web"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "permission_denied")
    assert keyed.delete("/v1/prompts/mood", headers=bearer("web")).status_code == 403
    assert keyed.get("/metrics", headers=bearer("web")).status_code == 403
    assert keyed.get("/metrics", headers=bearer("boss")).status_code == 200


def test_too_many_requests_are_told_when_to_come_back(keyed: TestClient) -> None:
    answers = [keyed.get("/v1/models", headers=bearer("slow")) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert 1 <= int(answers[1].headers["retry-after"]) <= 60


def test_a_foreign_host_is_refused_which_a_page_could_have_led_here(engine: Engine) -> None:
    app = create_app(engine, hosts=["localhost", "::1", "prompts.example"])
    for host, status in (
        ("localhost:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("prompts.example", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("localhost:80@evil.example", 400),
    ):
        answer = TestClient(app, base_url="http://localhost").get("/v1/models", headers={"host": host})
        assert answer.status_code == status, host
    assert TestClient(create_app(engine, hosts=["*"])).get("/v1/models").status_code == 200


def test_a_request_keeps_its_id_and_the_log_has_no_text(
    keyed: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "mood", "input": "the secret word"}
    with caplog.at_level(logging.INFO, "softprompt.serving.access"):
        answer = keyed.post(
            "/v1/classify",
            json=body,
            headers={**bearer("boss"), "x-request-id": "mine-1", "host": "localhost"},
        )
        other = keyed.get("/health", headers={"x-request-id": "a b\t"})
    assert (answer.status_code, answer.headers["x-request-id"]) == (503, "mine-1")  # not started
    assert len(other.headers["x-request-id"]) == 32
    line: dict[str, Any] = json.loads(caplog.records[0].message)
    assert (line["request_id"], line["key"], line["route"]) == ("mine-1", "boss", "/v1/classify")
    assert (line["prompt"], line["status"], line["error"]) == ("mood", 503, "server_stopping")
    assert "secret" not in caplog.text


def test_a_failure_of_ours_is_told_without_its_reason(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("inner secret")

    monkeypatch.setattr(engine, "models", fail)
    answer = TestClient(create_app(engine), base_url="http://localhost").get("/v1/models")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "inner secret" in caplog.text
