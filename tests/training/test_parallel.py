"""Two processes take the same steps as one."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from softprompt.training.checkpoint import FILE
from softprompt.training.recipe import Recipe
from tests.processes import fork_server
from tests.tiny.training import ToyModel, parallel_run, tensors, toy_rows, toy_run
from tests.tolerances import assert_equal_up_to_rounding


def in_two_processes(
    settings: dict[str, Any], folder: Path, *, checkpoints: bool = False
) -> list[dict[str, Any]]:
    """What `parallel_run` sends from process 0 and from process 1."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = fork_server()
    pipes, processes = [], []
    for rank in range(2):
        environment = {
            "ACCELERATE_USE_CPU": "true",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        listening, telling = context.Pipe(duplex=False)
        process = context.Process(
            target=parallel_run, args=(environment, settings, folder, checkpoints, telling)
        )
        process.start()
        telling.close()
        pipes.append(listening)
        processes.append(process)
    results = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return results


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
def test_two_processes_end_where_one_does(tmp_path: Path, accumulation: int) -> None:
    # 7 rows in batches of 5: the second batch has 2 rows, so that some shares have one row or none.
    settings = {
        "steps": 16,
        "batch_size": 5,
        "accumulation": accumulation,
        "evaluate_every": 2,
        "patience": 3,
        "clip_norm": 0.1,
    }
    model = ToyModel(dtype=torch.float64, dropout=0.2)
    alone = toy_run(model, Recipe(**settings), toy_rows(7))
    results = in_two_processes(settings, tmp_path)
    for result in results:
        ends = {name: torch.tensor(value, dtype=torch.float64) for name, value in result["tensors"].items()}
        losses, norms = ([getattr(r, name) for r in alone.history] for name in ("loss", "gradient_norm"))
        assert_equal_up_to_rounding(ends, tensors(model))
        assert_equal_up_to_rounding(result["losses"], losses, torch.float64)
        assert_equal_up_to_rounding(result["norms"], norms, torch.float64)
        assert (result["best_step"], result["steps"]) == (alone.best_step, alone.steps)
    # Both decide to stop at the same step, although only the main process evaluates.
    assert results[0]["evaluations"] > results[1]["evaluations"] == 0


@pytest.mark.slow
def test_the_main_process_writes_and_both_resume(tmp_path: Path) -> None:
    settings = {"steps": 6, "batch_size": 4}
    first = in_two_processes(settings, tmp_path, checkpoints=True)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = in_two_processes(settings, tmp_path, checkpoints=True)
    assert again[0]["tensors"] == again[1]["tensors"] == first[0]["tensors"]
    assert again[0]["evaluations"] == 0
