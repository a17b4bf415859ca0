"""softprompt serve: what it refuses to start with, and that it starts."""

from __future__ import annotations

import builtins
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.cli.runs import softprompt


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "give --keys FILE, or --no-keys"),
        (("--set", "max_queue"), "expected NAME=VALUE"),
        (("--set", "max_queue=0"), "max_queue"),
        (("--set", "max_qeue=5"), "max_qeue"),
        (("--keys", "nothing.yaml"), "nothing.yaml"),
        ((), "holds no saved prompt that can be read: give --backbone"),
    ],
)
def test_what_it_does_not_start_with(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    result = softprompt("serve", tmp_path, *options)
    assert result.exit_code == 1
    assert said in result.stderr


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    assert "is no folder" in softprompt("serve", tmp_path / "nothing").stderr


def test_without_the_extra_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name in ("softprompt.serving.server", "uvicorn"):
            raise ImportError("no uvicorn", name="uvicorn")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    result = softprompt("serve", tmp_path)
    assert "(uvicorn): pip install 'softprompt[serve]'" in result.stderr


@pytest.mark.slow
def test_it_serves_the_prompts_of_a_folder_until_sigterm(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    shutil.copytree(trained, folder / "run")  # of a run, or the prompt itself
    shutil.copytree(trained / "prompt", folder / "mood")
    command = [sys.executable, "-m", "softprompt", "serve", folder, "--port", "0"]
    backbone = ["--backbone", trained.parent / "backbone", "--dtype", "float32", "--device", "cpu"]
    with subprocess.Popen(
        [str(part) for part in (*command, *backbone)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("2 prompts of")
            address = line.split(" at ")[1].split("/v1")[0]
            models = httpx2.get(f"{address}/v1/models").json()["data"]
            assert [model["id"] for model in models[:2]] == ["mood", "run"]
            body = {"model": "mood", "input": "the film"}
            assert httpx2.post(f"{address}/v1/classify", json=body, timeout=60).status_code == 200
            process.send_signal(signal.SIGTERM)
            errors = process.stderr.read()
        finally:
            process.kill()
    assert '"route": "/v1/classify", "status": 200' in errors
    assert "Traceback" not in errors
