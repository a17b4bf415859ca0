"""One trained run that the verbs which only read it share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.runs import softprompt, write_backbone, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config beside its backbone."""
    write_backbone(tmp_path / "backbone")
    return write_config(tmp_path / "run.yaml")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; tests leave it as it is."""
    place = tmp_path_factory.mktemp("trained")
    write_backbone(place / "backbone")
    config = write_config(place / "run.yaml")
    rows = str(place / "rows.jsonl")
    result = softprompt("train", config, f"data.test={rows}", "--output", place / "run", "--quiet")
    assert result.exit_code == 0, result.output
    return place / "run"
