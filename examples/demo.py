"""Tune a prompt for review sentences on a real model, and use it.

    make demo                                    # or: python examples/demo.py
    make demo TEXT="The screen broke on day two."

A frozen SmolLM2-135M-Instruct (4-bit weights, dequantised) reads sentences from product reviews (MultiEmo, machine
translated from Polish) and says negative, positive, neutral or mixed. Test rows are read once, at the end.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import softprompt as sp
from softprompt.data import load_rows, subsample
from softprompt.inspection.plots import learning_curve, save_figure

MANUAL = (
    "Decide the sentiment of a sentence from a product review. Answer negative, positive, neutral, or mixed if it is "
    "both positive and negative.\n\n"
)
TASK = sp.TextClassification(
    "Review: {text}\nSentiment:",
    labels={"negative": " negative", "positive": " positive", "neutral": " neutral", "ambivalent": " mixed"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tune, evaluate, save and use a prompt.")
    parser.add_argument("text", nargs="?", default="The battery lasts two days, I am delighted.")
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps")
    parser.add_argument("--rows", type=int, default=300, help="test rows")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    arguments = parser.parse_args()
    console = Console(width=100)
    started = time.perf_counter()

    backbone = sp.load_backbone("smollm2-135m-instruct")
    train = load_rows("multiemo-products", "train")
    validation = subsample(load_rows("multiemo-products", "validation"), 200, seed=0)
    test = subsample(load_rows("multiemo-products", "test"), arguments.rows, seed=0)
    console.print(
        f"{backbone.name}, {str(backbone.dtype).removeprefix('torch.')}; {len(train)} training sentences",
        style="bold",
    )

    # Training starts from the words of the hand-written prompt: they are a better place than random ones.
    method = sp.PromptTuning(length=len(backbone.spec.tokenize(MANUAL)), init="text", init_text=MANUAL)
    tuned = sp.fit(
        backbone,
        TASK,
        method,
        train,
        validation,
        steps=arguments.steps,
        evaluate_every=min(50, arguments.steps),
    )
    zero_shot = sp.fit(backbone, TASK, sp.ZeroShot(), train)
    manual = sp.fit(backbone, TASK, sp.ManualPrompt(MANUAL), train)

    table = Table(title=f"{len(test)} unseen sentences of product reviews, 4 labels")
    for column in ("", "accuracy", "macro F1"):
        table.add_column(column, justify="left" if not column else "right")
    scores = {
        name: prompt.evaluate(test)
        for name, prompt in [
            ("zero-shot", zero_shot),
            ("hand-written prompt", manual),
            ("tuned prompt", tuned),
        ]
    }
    table.add_row("always the commonest label", f"{scores['tuned prompt']['majority_accuracy']:.3f}", "")
    for name, metrics in scores.items():
        table.add_row(
            name,
            f"{metrics['accuracy']:.3f}",
            f"{metrics['macro_f1']:.3f}",
            style="bold" if name == "tuned prompt" else None,
        )
    console.print(table)

    folder = tuned.save(arguments.output / "prompt", overwrite=True)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    curve = arguments.output / "curve.png"
    save_figure(learning_curve(tuned.history, "accuracy"), curve)
    console.print(f"saved to {folder} ({size / 1000:.0f} kB); learning curve in {curve}")

    (prediction,) = sp.load(folder, backbone).predict([arguments.text])
    console.print(
        f'"{arguments.text}" -> [bold]{prediction.label}[/bold] ({prediction.probabilities[prediction.label]:.0%})'
    )
    console.print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
