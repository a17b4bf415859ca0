"""Archive of a published figure, not maintained: it made docs/results/foundation.json at commit 3cfa151.

Prompt Tuning's defaults against its baselines on four real data sets. At that commit:

    python -m studies.foundation --output docs/results/foundation.json

Two processes started so, each with OMP_NUM_THREADS=1, share the runs: under three hours on two cores.

Settings are chosen on validation rows, test rows are read once per final run. A run that is in the file is not run
again, so a killed study goes on where it was.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import softprompt as sp
from docs.results.archive.foundation import DEFAULT, GRID, SEEDS, WIDER, WIDER_ON, best_of_grid
from docs.results.archive.runs import Study
from softprompt import exchange, store
from softprompt.backbones.base import Backbone
from softprompt.data import load_rows, subsample

VALIDATION, TEST = 200, 300  # rows
READ_BEFORE = 300  # test rows that were read while the defaults were still changing: others are read now


@dataclass(frozen=True)
class Setting:
    """A data set, its task, the hand-written prompt, and how long to train on texts of how many words at most."""

    task: sp.TextClassification
    manual: str
    batch_size: int
    words: int = 80
    steps: int = 100


MOOD = sp.TextClassification(
    "Review: {text}\nSentiment:",
    labels={"negative": " negative", "positive": " positive", "neutral": " neutral", "ambivalent": " mixed"},
)
MOOD_PROMPT = (
    "Decide the sentiment of a sentence from a {} review. Answer negative, positive, neutral, or mixed if it is both "
    "positive and negative.\n\n"
)
SETTINGS = {
    "multiemo-products": Setting(MOOD, MOOD_PROMPT.format("product"), 16),
    "multiemo-hotels": Setting(MOOD, MOOD_PROMPT.format("hotel"), 16),
    "vitaminc": Setting(
        sp.TextClassification(
            "Evidence: {evidence}\nClaim: {claim}\nVerdict:",
            labels={"True": " true", "False": " false", "Neither": " unclear"},
        ),
        "Decide whether the claim is true or false according to the evidence. Answer unclear if the evidence does not say.\n\n",
        8,
    ),
    "bbc-news": Setting(
        sp.TextClassification(
            "{text}\nTopic:",
            labels={n: f" {n}" for n in ("business", "entertainment", "politics", "sports", "tech")},
        ),
        "Name the topic of a news article: business, entertainment, politics, sports or tech.\n\n",
        8,
        words=40,
    ),
}
FULL_TUNING_ON = "multiemo-products"


def rows(name: str, split: str, validation: int = VALIDATION) -> list[dict[str, Any]]:
    """The rows of a split that are used, the same in every run; long texts cut to their first words.

    validation: how many of that split
    """
    found = load_rows(name, split)
    if split == "test":
        before = {id(row) for row in subsample(found, READ_BEFORE, seed=0)}
        found = [row for row in found if id(row) not in before]
    limit = {"train": 4000, "validation": validation, "test": TEST}[split]
    found = subsample(found, min(limit, len(found)), seed=0)
    return [{c: " ".join(str(v).split()[: SETTINGS[name].words]) for c, v in row.items()} for row in found]


def scores(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation."""
    return {key: metrics[key] for key in ("accuracy", "macro_f1", "mcc", "predicted", "rows")}


def one_run(
    backbone: Backbone,
    name: str,
    method: sp.Method,
    *,
    seed: int,
    on: Sequence[str],
    validate: int = VALIDATION,
    **recipe: Any,
) -> dict[str, Any]:
    """Train (where there is something to train) and evaluate on validation rows and on the splits in `on`.

    validate: how many validation rows; 0 for what no setting is chosen for.
    """
    setting = SETTINGS[name]
    task = recipe.pop("task", setting.task)
    settings = {
        "steps": setting.steps,
        "batch_size": setting.batch_size,
        "evaluate_every": setting.steps,
        "seed": seed,
    } | recipe
    validation = rows(name, "validation", validate) if validate else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.SoftpromptWarning)
        tuned = sp.fit(backbone, task, method, rows(name, "train"), validation, progress=False, **settings)
    result: dict[str, Any] = {
        "trained_parameters": tuned.recipe["trained_parameters"],
        "learning_rate": tuned.recipe["learning_rate"],
        "seconds": round(tuned.recipe.get("seconds", 0.0), 1),
    }
    if validate:
        result["validation"] = scores(tuned.metrics["validation"])
    if "test" in on:
        result["test"] = scores(tuned.evaluate(rows(name, "test")))
        result["accuracy"] = result["test"]["accuracy"]
    return result


def peft_start(backbone: Backbone, seed: int, folder: Path, length: int = 20) -> Path:
    """PEFT's default initial prompt, N(0, 1) whatever the table's scale, as a folder in its own format."""
    tokens = torch.randn(length, backbone.spec.width, generator=torch.Generator().manual_seed(seed))
    exchange.write_peft(folder, tokens, base_model_name=backbone.name, num_layers=1, num_attention_heads=1)
    return folder


def majority(name: str) -> dict[str, Any]:
    """The test accuracy of always giving the commonest label of these very rows."""
    labels = Counter(row["label"] for row in rows(name, "test"))
    return {"accuracy": max(labels.values()) / labels.total()}


def peft_defaults(backbone: Backbone, name: str, *, seed: int) -> dict[str, Any]:
    """PEFT's prompt tuning as it comes: its random start, transformers' Trainer's learning rate, its loss.

    On our engine, whose training steps equal PEFT's (tests/exchange/test_exchange_peft_training.py).
    """
    task = sp.TextClassification(SETTINGS[name].task.template, SETTINGS[name].task.labels, loss="lm")
    with tempfile.TemporaryDirectory() as folder:
        method = sp.PromptTuning(
            init="prompt", init_prompt=peft_start(backbone, seed, Path(folder) / "start")
        )
        return one_run(
            backbone,
            name,
            method,
            seed=seed,
            on=("test",),
            validate=0,
            task=task,
            learning_rate=5e-5,
            warmup=0,
        )


def run_all(study: Study, backbone: Backbone, names: Sequence[str]) -> None:
    """Every run, the cheap and the important ones first."""
    for name in names:
        manual = sp.ManualPrompt(SETTINGS[name].manual)
        study.run(f"{name}/majority", majority, name)
        study.run(f"{name}/zero-shot", one_run, backbone, name, sp.ZeroShot(), seed=0, on=("test",))
        study.run(f"{name}/manual", one_run, backbone, name, manual, seed=0, on=("test",))
    for seed in SEEDS:
        for name in names:
            key = f"{name}/prompt-tuning/{seed}"
            study.run(key, one_run, backbone, name, sp.PromptTuning(), seed=seed, on=("test",))
    for seed in SEEDS:
        for name in names:
            study.run(
                f"{name}/8-shot/{seed}", one_run, backbone, name, sp.FewShot(8), seed=seed, on=("test",)
            )
    for name in names:
        for factor in set(GRID) - {DEFAULT}:  # the default's seed 0 is above
            lr = factor * backbone.spec.embedding_std
            key = f"{name}/grid/{factor}"
            study.run(
                key, one_run, backbone, name, sp.PromptTuning(), seed=0, on=("validation",), learning_rate=lr
            )
    for name in names:  # a lucky seed is no better rate
        best = best_of_grid(study.runs, name)
        lr = best * backbone.spec.embedding_std
        for seed in SEEDS[1:] if best != DEFAULT else ():
            key = f"{name}/grid/{best}/{seed}"
            study.run(
                key,
                one_run,
                backbone,
                name,
                sp.PromptTuning(),
                seed=seed,
                on=("validation",),
                learning_rate=lr,
            )
    if WIDER_ON in names:
        for seed in SEEDS:
            for factor in {DEFAULT, best_of_grid(study.runs, WIDER_ON)}:
                study.run(
                    f"{WIDER_ON}/wider/{factor}/{seed}",
                    one_run,
                    backbone,
                    WIDER_ON,
                    sp.PromptTuning(),
                    seed=seed,
                    on=("validation",),
                    validate=WIDER,
                    learning_rate=factor * backbone.spec.embedding_std,
                )
    if FULL_TUNING_ON in names:
        for seed in SEEDS:
            key = f"{FULL_TUNING_ON}/full-tuning/{seed}"
            study.run(key, one_run, backbone, FULL_TUNING_ON, sp.FullTuning(), seed=seed, on=("test",))
    for seed in SEEDS:
        for name in names:
            study.run(f"{name}/peft/{seed}", peft_defaults, backbone, name, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results/foundation.json"))
    parser.add_argument("--only", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    arguments = parser.parse_args()
    study = Study(arguments.output)
    backbone = sp.load_backbone("smollm2-135m-instruct")
    about = {"backbone": backbone.name, "precision": str(backbone.dtype)}
    if "about" not in study.runs:
        study.keep("about", about | store.library_versions())
    run_all(study, backbone, arguments.only)


if __name__ == "__main__":
    main()
