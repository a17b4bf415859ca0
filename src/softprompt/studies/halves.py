"""A study's run of base-to-new: what the protocol found, in the words of a run's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.data import Row
from softprompt.protocols.base_to_new import base_to_new_runs
from softprompt.studies.run_settings import RunSettings
from softprompt.training.progress import Progress
from softprompt.tuned import TunedPrompt

MAIN = "harmonic_mean"
NAMES = ("base", "new", MAIN)


def in_halves(
    backbone: Backbone,
    settings: RunSettings,
    train: Sequence[Row],
    test: Sequence[Row],
    folder: Path,
    progress: Progress,
) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
    """One seed of `base_to_new_runs`: its metrics on test rows, H the main one, and what training and tests took; its history.

    folder  checkpoints go there
    """
    config = settings.config
    kept: list[TunedPrompt] = []
    found = base_to_new_runs(
        backbone,
        config.task,  # type: ignore[arg-type]  # parse_run has looked
        config.method,
        train,
        test,
        shots=settings.shots,
        seeds=(config.recipe.seed,),
        recipe=config.recipe,
        folder=folder,
        progress=progress,
        keep=lambda seed, tuned: kept.append(tuned),
    )
    [record] = found.records
    classes = {"base_labels": list(found.base_labels), "new_labels": list(found.new_labels)}
    trained = bool(record["trained_parameters"])
    facts = {
        "main_metric": MAIN,
        "metrics": {"test": {name: record[name] for name in NAMES} | classes},
        "trained_parameters": record["trained_parameters"],
        "learning_rate": record["learning_rate"],
        "steps_made": config.recipe.steps if trained else 0,
        "seconds": record["seconds"] or 0.0,
        "test_seconds": record["test_seconds"],
    }
    return facts, kept[0].history
