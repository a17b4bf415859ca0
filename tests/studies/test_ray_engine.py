"""A study over a Ray cluster of two nodes, one of which dies."""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.backbones.loading import load_backbone
from softprompt.fitting.run_config import BackboneConfig
from softprompt.studies import StudyFolder, Worker, conduct, plan, read_study
from softprompt.studies.engine import Quiet
from tests.studies.small import results, write_study

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    # Ray leaves pipes and processes to the collector, and announces what later releases do.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:.*Ray will no longer override accelerator:FutureWarning"),
]


def open_tiny(config: BackboneConfig) -> Any:
    return load_backbone(config.name, dtype="float32", device="cpu")


def open_where_it_dies(place: Path, doomed: str, config: BackboneConfig) -> Any:
    """On the node that dies: says that its run has begun, and never returns. On the other one: waits for that."""
    if ray.get_runtime_context().get_node_id() == doomed:
        (place / "begun").write_text("begun")  # a pipe: returns when it is read
        threading.Event().wait()
    (place / "gone").read_text()
    with open(place / "opened", "a") as log:
        log.write("opened\n")
    return open_tiny(config)


class Noted(Quiet):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.made: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def ended(self, run: Any, outcome: Any) -> None:
        self.made.append(run.id)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker on a node of one CPU has it
    study = write_study(tmp_path / "study.yaml")
    conduct(read_study(study), StudyFolder(tmp_path / "out"), Worker(open_tiny))
    torch.set_num_threads(threads)
    return study


def test_a_study_outlives_a_node_of_the_cluster(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    from softprompt.studies.ray_engine import over_ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    memory = 80 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0, "object_store_memory": memory}
    )
    try:
        doomed = cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=memory)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        for name in ("begun", "gone"):
            os.mkfifo(tmp_path / name)

        def kill() -> None:
            (tmp_path / "begun").read_text()
            cluster.remove_node(doomed, allow_graceful=False)
            (tmp_path / "gone").write_text("gone")

        killing = threading.Thread(target=kill)
        killing.start()
        study, folder, show = read_study(undisturbed), StudyFolder(tmp_path / "spread"), Noted()
        opening = functools.partial(open_where_it_dies, tmp_path, doomed.node_id)
        with over_ray(study, folder, opening, show) as engine:
            conduct(study, folder, Worker(open_tiny), engine=engine, show=show)
        killing.join()

        assert results(undisturbed, tmp_path / "spread") == results(undisturbed, tmp_path / "out")
        assert sorted(show.made) == sorted(run.id for run in plan(study, folder.outcome).runs)
        [note] = show.notes
        assert "is lost: another makes the run again" in note
        assert (tmp_path / "opened").read_text() == "opened\n"  # one backbone for four runs
        assert not (tmp_path / "spread" / "set-aside").exists()
    finally:
        cluster.shutdown()
