"""Find a prompt of words for hotel reviews on a real model, and compare it with a hand-written one.

    python examples/find_trigger.py                # about 20 exchanges of a word
    python examples/find_trigger.py --steps 100 --output runs/trigger

A frozen SmolLM2-135M-Instruct reads sentences from hotel reviews (MultiEmo, machine translated from Polish) and says
negative, positive, neutral or mixed. Words between the review and the answer are exchanged one at a time, where the gradient
predicts the largest gain (AutoPrompt). All figures are on validation rows, which also choose the prompt; no test row is read.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table

import softprompt as sp
from softprompt.data import load_rows, subsample

MANUAL = (
    "Decide the sentiment of a sentence from a hotel review. Answer negative, positive, neutral, or mixed if it is both "
    "positive and negative.\n\n"
)
START = "In short, the guest found it"  # the words that are exchanged
PLAIN = sp.TextClassification(
    "Review: {text}\nSentiment:",
    labels={"negative": " negative", "positive": " positive", "neutral": " neutral", "ambivalent": " mixed"},
)
# The slot stands after the text, which is then run once for all candidates.
TASK = replace(PLAIN, template="Review: {text}\n{soft}\nSentiment:")


def main() -> None:
    parser = argparse.ArgumentParser(description="Search for a prompt of words.")
    parser.add_argument(
        "--steps", type=int, default=20, help="number of steps, each of which may exchange one word"
    )
    parser.add_argument("--candidates", type=int, default=8, help="words tried in a step")
    parser.add_argument("--rows", type=int, default=100, help="validation rows")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", default=START, help="words to start from")
    parser.add_argument("--output", type=Path, help="folder for the found prompt")
    arguments = parser.parse_args()
    console = Console(width=100)
    started = time.perf_counter()

    backbone = sp.load_backbone("smollm2-135m-instruct")
    train = load_rows("multiemo-hotels", "train")
    validation = subsample(load_rows("multiemo-hotels", "validation"), arguments.rows, seed=0)
    method = sp.TriggerSearch(init_text=arguments.start, top_k=arguments.candidates)
    tuned = sp.fit(
        backbone,
        TASK,
        method,
        train,
        validation,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        evaluate_every=max(1, arguments.steps // 4),
        max_tokens=96,
        seed=arguments.seed,
    )
    found = sp.project_prompt(tuned, validation)
    assert found.task is not None

    table = Table(
        title=f"{len(validation)} validation sentences of hotel reviews, 4 labels, seed {arguments.seed}"
    )
    for column in ("", "accuracy", "macro F1"):
        table.add_column(column, justify="left" if not column else "right")
    prompts = [
        ("zero-shot", PLAIN, sp.ZeroShot()),
        ("hand-written prompt, in front", PLAIN, sp.ManualPrompt(MANUAL)),
        ("the words it started from", TASK, sp.ManualPrompt(arguments.start)),
        ("found prompt, as an ordinary template", found.task, sp.ZeroShot()),
    ]
    for name, task, baseline in prompts:
        metrics = sp.fit(backbone, task, baseline, train, max_tokens=160).evaluate(validation)
        if name == "zero-shot":
            table.add_row("always the commonest label", f"{metrics['majority_accuracy']:.3f}", "")
        table.add_row(name, f"{metrics['accuracy']:.3f}", f"{metrics['macro_f1']:.3f}")
    console.print(table)
    template = cast(sp.TextClassification, found.task).template
    console.print(f"found words: {found.text!r}; template: {template!r}", highlight=False)
    if arguments.output is not None:
        console.print(f"saved to {tuned.save(arguments.output, overwrite=True)}")
    console.print(f"{time.perf_counter() - started:.0f} seconds in all")


if __name__ == "__main__":
    main()
