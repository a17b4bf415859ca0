"""A grid of linear probes: each head is the one that fit trains alone, and the backbone runs once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt import (
    LinearProbe,
    Recipe,
    Regression,
    SequenceClassification,
    SpanExtraction,
    TextClassification,
    TokenClassification,
    fit,
    load,
)
from softprompt.protocols.probe_grid import probe_grid
from softprompt.tasks.base import Task
from tests.features.test_cache import passes
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.vision import ROWS, TASK, vision_backbone

pytestmark = pytest.mark.filterwarnings(
    "ignore:(every validation|the validation error|no training word|.*answer):softprompt.SoftpromptWarning"
)

RECIPE = Recipe(steps=12, batch_size=6, evaluate_every=5, clip_norm=0.5)
RATES, DECAYS = (0.03, 0.003), (0.1, 0.0)


def alone(backbone: Any, task: Task, rows: Any, rate: float, decay: float, **more: Any) -> Any:
    settings = {"steps": 12, "batch_size": 6, "evaluate_every": 5, "clip_norm": 0.5, **more}
    grid: dict[str, Any] = {"learning_rate": rate, "weight_decay": decay, "progress": False}
    return fit(backbone, task, LinearProbe(), rows, rows[:5], **settings, **grid)


def test_each_head_is_that_of_a_run_of_its_own() -> None:
    backbone = vision_backbone()
    with passes(backbone) as seen:
        grid = probe_grid(
            backbone, TASK, ROWS, ROWS[:5], learning_rates=RATES, weight_decays=DECAYS, recipe=RECIPE
        )
    assert sum(seen) == len(ROWS) + 5  # the backbone ran once for each image
    runs = [alone(backbone, TASK, ROWS, rate, decay) for rate in RATES for decay in DECAYS]
    assert [(s.learning_rate, s.weight_decay) for s in grid.scores] == [(r, d) for r in RATES for d in DECAYS]
    for score, run in zip(grid.scores, runs, strict=True):
        assert score.score == run.metrics["validation"]["accuracy"]
        assert score.step == run.recipe["best_step"]
    for rate, decay, run in zip((0.03, 0.03, 0.003, 0.003), DECAYS * 2, runs, strict=True):
        (one,) = (
            probe_grid(
                backbone, TASK, ROWS, ROWS[:5], learning_rates=[rate], weight_decays=[decay], recipe=RECIPE
            ),
        )
        for name, tensor in run.trained().items():
            assert_close(one.best.trained()[name], tensor, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["mean", "tags", "value", "windows"])
def test_it_is_for_every_task_with_a_head(kind: str) -> None:
    rows = [
        {
            **row,
            "words": row["text"].split(),
            "tags": ["B-X"] + ["O"] * row["text"].count(" "),
            "value": float(len(row["text"])),
            "question": "what is it",
            "context": f"look, {row['text']} here again and again by the river",
            "answers": {"text": [row["text"].split()[0]], "answer_start": [6]},
        }
        for row in TEXTS
    ]
    task: Task = {
        "mean": SequenceClassification("{text} sentiment", labels=["neg", "pos"], pooling="mean"),
        "tags": TokenClassification(tags=["O", "B-X", "I-X"]),
        "value": Regression("{text}", low=0, high=20),
        "windows": SpanExtraction("{question}:{context}", stride=2),
    }[kind]
    backbone = encoder_backbone(head=False)
    recipe = replace(RECIPE, max_tokens=20 if kind == "windows" else None)
    grid = probe_grid(
        backbone, task, rows, rows[:5], learning_rates=[0.01], weight_decays=[0.1], recipe=recipe
    )
    run = alone(backbone, task, rows, 0.01, 0.1, max_tokens=recipe.max_tokens)
    for name, tensor in run.trained().items():
        # The start and the end of a span are chosen among its places: a bias takes no part, its gradient is rounding.
        if kind != "windows" or name == "head.weight":
            assert_close(grid.best.trained()[name], tensor, rtol=1e-4, atol=1e-6)
    assert grid.best.metrics["validation"].keys() == run.metrics["validation"].keys()


def test_the_best_is_a_prompt_like_any_other(tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    grid = probe_grid(
        backbone, TASK, ROWS, ROWS, recipe=Recipe(steps=30, batch_size=8), cache_features=tmp_path / "cache"
    )
    assert len(grid.scores) == 24
    top = max(score.score for score in grid.scores)
    assert grid.best.metrics["validation"]["accuracy"] == top
    # Of equals the smaller rate.
    assert grid.best.recipe["learning_rate"] == min(s.learning_rate for s in grid.scores if s.score == top)
    assert grid.best.evaluate(ROWS)["accuracy"] == top
    again = load(grid.best.save(tmp_path / "saved"), backbone)
    inputs = [row["image"] for row in ROWS]
    assert again.predict(inputs) == grid.best.predict(inputs)
    with passes(backbone) as seen:
        probe_grid(backbone, TASK, ROWS, ROWS, recipe=Recipe(steps=2), cache_features=tmp_path / "cache")
    assert not seen


def test_what_cannot_be_a_grid_is_refused() -> None:
    backbone = vision_backbone()
    with pytest.raises(ValueError, match="the grid is empty"):
        probe_grid(backbone, TASK, ROWS, ROWS, learning_rates=[])
    with pytest.raises(ValueError, match="not positive"):
        probe_grid(backbone, TASK, ROWS, ROWS, learning_rates=[0.0])
    with pytest.raises(ValueError, match="side by side with AdamW"):
        probe_grid(backbone, TASK, ROWS, ROWS, recipe=Recipe(patience=2))
    with pytest.raises(ValueError, match="no rows in the list"):
        probe_grid(backbone, TASK, ROWS, [])
    words = TextClassification("{text} it was {mask}", labels={"neg": " bad", "pos": " good"})
    with pytest.raises(ValueError, match="take a task with a head"):
        probe_grid(encoder_backbone(), words, TEXTS, TEXTS)
