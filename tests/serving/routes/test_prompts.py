"""Prompts that are added and removed over HTTP."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.serving import Engine
from softprompt.serving.app import create_app


def test_prompts_come_and_go_inside_the_served_folder(
    backbone: CausalBackbone, folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "served"
    shutil.copytree(folder / "mood", root / "mood")
    shutil.copytree(folder / "calm", root / "more" / "calm")
    engine = Engine(backbone, root)
    client = TestClient(create_app(engine), base_url="http://localhost")

    def names() -> list[str]:
        return [model["id"] for model in client.get("/v1/models").json()["data"][:-1]]

    asyncio.run(engine.look_again())
    assert names() == ["mood"]
    added = client.post("/v1/prompts", json={"name": "quiet", "folder": "more/calm"})
    assert (added.status_code, added.json()["id"]) == (201, "quiet")
    assert client.post("/v1/prompts", json={"name": "quiet", "folder": "more/calm"}).status_code == 400
    again = client.post("/v1/prompts", json={"name": "quiet", "folder": "mood", "overwrite": True})
    assert again.status_code == 200

    assert client.delete("/v1/prompts/mood").json()["deleted"]
    asyncio.run(engine.look_again())
    assert names() == ["quiet"]  # its folder is there, and the one who removed it meant it
    assert client.delete("/v1/prompts/mood").status_code == 404
    assert client.post("/v1/prompts", json={"name": "mood"}).status_code == 201
    assert names() == ["mood", "quiet"]
    client.delete("/v1/prompts/mood")
    (root / "mood" / "prompt.json").touch()
    asyncio.run(engine.look_again())
    assert names() == ["mood", "quiet"]


@pytest.mark.parametrize("way", ["folder", "file"])
def test_a_link_does_not_lead_out(backbone: CausalBackbone, folder: Path, tmp_path: Path, way: str) -> None:
    root = tmp_path / "served"
    root.mkdir()
    if way == "folder":
        (root / "mood").symlink_to(folder / "mood")
    else:
        (root / "mood").mkdir()
        for file in (folder / "mood").iterdir():
            (root / "mood" / file.name).symlink_to(file)
    client = TestClient(create_app(Engine(backbone, root)), base_url="http://localhost")
    for name in ("mood", "../served/mood", str(folder / "mood")):
        answer = client.post("/v1/prompts", json={"name": "x", "folder": name})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "folder")
        assert str(tmp_path) not in answer.text
