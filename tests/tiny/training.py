"""A model and a task small enough for a step to take a millisecond, and runs of them in other processes.

A row's hidden state is the mean of its token and virtual-token embeddings plus an offset. Prompt and offset
are trained. P virtual tokens, d width, V vocabulary.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softprompt.outputs import EncodedRow, TargetLogits
from softprompt.training.loop import train
from softprompt.training.progress import Record, Silent
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run, TrainingResult

P, d, V = 3, 5, 11
LABEL_WORDS = ((1,), (2,))


class ToyModel:
    def __init__(self, *, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = torch.randn(V, d, generator=generator, dtype=dtype)
        self.head = torch.randn(d, V, generator=generator, dtype=dtype)
        self.prompt = nn.Parameter(torch.randn(P, d, generator=generator, dtype=dtype))
        self.offset = nn.Parameter(torch.randn(d, generator=generator, dtype=dtype))
        self.dropout = dropout
        self.calls = 0

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        return {"prompt": self.prompt, "offset": self.offset}

    def score(self, rows: Sequence[EncodedRow]) -> TargetLogits:
        self.calls += 1
        prompt = F.dropout(self.prompt, self.dropout)
        embeddings = torch.cat([prompt.flip(0), self.table])  # virtual token k, id -1 - k, is row P - 1 - k
        means = [embeddings[torch.tensor(row.context) + P].mean(0) for row in rows]
        logits = torch.tanh(torch.stack(means) + self.offset) @ self.head  # (B, V)
        counts = tuple(len(row.targets) for row in rows)
        position = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(counts))
        token = torch.tensor([target[0] for row in rows for target in row.targets])
        return TargetLogits(logits, position, token, torch.arange(len(token)), counts)


class ToyTask:
    def loss(self, logits: TargetLogits, rows: Sequence[EncodedRow]) -> Tensor:
        scores = logits.log_likelihoods()[0].view(len(rows), len(LABEL_WORDS))
        return F.cross_entropy(scores, torch.tensor([row.gold for row in rows]), reduction="none")


def toy_rows(count: int = 24, seed: int = 0) -> list[EncodedRow]:
    """Rows of 4 to 6 tokens, virtual ones included; three of four have the second label."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for i in range(count):
        words = torch.randint(3, V, (1 + i % 3,), generator=generator).tolist()
        rows.append(EncodedRow((-1, -2, -3, *words), LABEL_WORDS, gold=int(i % 4 > 0)))
    return rows


def evaluation(model: ToyModel) -> dict[str, float]:
    rows = toy_rows(10, seed=1)
    dropout, model.dropout = model.dropout, 0.0
    losses = ToyTask().loss(model.score(rows), rows)
    model.dropout = dropout
    return {"likelihood": -losses.mean().item(), "worst": -losses.max().item()}


def groups(model: ToyModel, lr: float = 0.05) -> list[dict[str, Any]]:
    return [{"params": [model.prompt], "lr": lr}, {"params": [model.offset], "lr": lr / 2}]


def toy_run(
    model: ToyModel, recipe: Recipe, rows: Sequence[EncodedRow] | None = None, **options: Any
) -> TrainingResult:
    """Train the toy, evaluated unless the options say otherwise."""
    options = {"evaluate": lambda: evaluation(model), "main_metric": "likelihood"} | options
    run = Run(model.parameters, groups(model), rows or toy_rows(), recipe, **options)
    return train(model, ToyTask(), run)


def tensors(model: ToyModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.parameters.items()}


# From here on: runs in other processes.

KILLED_RECIPE = Recipe(steps=240, batch_size=5, evaluate_every=7, checkpoint_every=2, clip_norm=0.5)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Telling(Silent):
    """Tells of each step; a few after the count-th, waits to be killed, as the run must not end first."""

    def __init__(self, pipe: Connection, count: int) -> None:
        self.pipe = pipe
        self.left = count + 5

    def update(self, record: Record) -> None:
        self.pipe.send(record.step)
        self.left -= 1
        if self.left == 0:
            signal.pause()


def killed_run(folder: Path, way: str, count: int, pipe: Connection) -> None:
    """Train or resume in `folder` until the process is killed; at the end, write tensors to end.safetensors.

    way: "step": killed when row scores are asked for the count-th time; "written": between the writing and
    the renaming of the count-th checkpoint; "renamed": right after it; "outside": by a listener to the pipe.
    """
    torch.set_num_threads(1)
    model = ToyModel(dropout=0.3)
    score, rename = model.score, os.replace
    left = count

    def reached() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def killing_score(rows: Sequence[EncodedRow]) -> TargetLogits:
        if way == "step" and reached():
            _kill_self()
        return score(rows)

    def killing_rename(path: Path, target: Path) -> None:
        if way == "written" and reached():
            _kill_self()
        rename(path, target)
        if way == "renamed" and reached():
            _kill_self()

    model.score = killing_score  # type: ignore[method-assign]
    os.replace = killing_rename  # type: ignore[assignment]
    # Left out for speed: it guards against a power cut, while a killed process loses nothing that it wrote.
    os.fsync = lambda descriptor: None
    progress = _Telling(pipe, count) if way == "outside" else None
    toy_run(model, KILLED_RECIPE, folder=folder, progress=progress)
    safetensors.torch.save_file(tensors(model), folder / "end.safetensors")


def parallel_run(
    environment: Mapping[str, str],
    settings: Mapping[str, Any],
    folder: Path,
    checkpoints: bool,
    pipe: Connection,
) -> None:
    """One of several processes that train together; sends its tensors, losses and metrics."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    model = ToyModel(dtype=torch.float64, dropout=0.2)
    if environment["RANK"] != "0":  # the main process's tensors are the ones that count
        with torch.no_grad():
            model.prompt.add_(1.0)
    calls = 0

    def evaluate() -> dict[str, float]:
        nonlocal calls
        calls += 1
        return evaluation(model)

    result = toy_run(
        model, Recipe(**settings), toy_rows(7), evaluate=evaluate, folder=folder if checkpoints else None
    )
    pipe.send(
        {
            "tensors": {name: tensor.tolist() for name, tensor in tensors(model).items()},
            "losses": [record.loss for record in result.history],
            "norms": [record.gradient_norm for record in result.history],
            "best_step": result.best_step,
            "steps": result.steps,
            "evaluations": calls,
        }
    )
    torch.distributed.destroy_process_group()
