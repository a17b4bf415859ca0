"""Zero-shot accuracy of a dual encoder that is trained on demand, on emoji that it has never seen.

    python examples/emoji_clip.py                  # or: --styles emoji-google --rows 100

The first run trains the projections of `emoji-clip`, which takes minutes, and caches the model.
"""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table

import softprompt as sp
from softprompt.data import load_rows

STYLES = ("emoji-google", "emoji-twitter", "emoji-fluent")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Zero-shot accuracy of emoji-clip on emoji of the test split."
    )
    parser.add_argument("--styles", nargs="+", default=list(STYLES), help="built-in data sets")
    parser.add_argument("--rows", type=int, help="number of test images of each style; all by default")
    arguments = parser.parse_args()

    backbone = sp.load_backbone("emoji-clip", dtype="float32")
    table = Table(title="Points; never seen in any style")
    table.add_column("emoji of the test split")
    for column in (
        "images",
        "name, top 1",
        "name, top 5",
        "chance",
        "category, zero-shot",
        "commonest category",
    ):
        table.add_column(column, justify="right")
    for style in arguments.styles:
        rows = list({row["name"]: row for row in load_rows(style, "test")}.values())[: arguments.rows]
        first, five = ranked(backbone, rows)
        metrics = zero_shot(backbone, rows, "label").evaluate(rows)
        table.add_row(
            style,
            str(len(rows)),
            *(f"{100 * share:.1f}" for share in (first, five, 1 / len(rows))),
            *(f"{100 * metrics[name]:.1f}" for name in ("accuracy", "majority_accuracy")),
        )
    Console(width=120).print(table)


def zero_shot(backbone: Any, rows: list[dict[str, Any]], column: str) -> sp.TunedPrompt:
    """The dual encoder as it is, for the labels that stand in a column of the rows."""
    labels = sorted({row[column] for row in rows})
    task = sp.ImageTextClassification(labels=labels, label_column=column, template="an emoji of {}.")
    return sp.fit(backbone, task, sp.ZeroShot(), rows, progress=False)


def ranked(backbone: Any, rows: list[dict[str, Any]]) -> tuple[float, float]:
    """Shares of the images whose own name is the likeliest of all, and among the five likeliest."""
    predictions = zero_shot(backbone, rows, "name").predict(rows)
    places = [
        sum(share > found.probabilities[row["name"]] for share in found.probabilities.values())
        for row, found in zip(rows, predictions, strict=True)
    ]
    return sum(p < 1 for p in places) / len(places), sum(p < 5 for p in places) / len(places)


if __name__ == "__main__":
    main()
