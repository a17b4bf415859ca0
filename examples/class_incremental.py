"""Class-incremental learning on kinds of emoji: how much methods forget, with and without rehearsal.

    python examples/class_incremental.py                  # or: --methods vpt bitfit --steps 50 --rehearse 5

A frozen ViT-S/14 sees subcategories of emoji ("animal-bird", "food-fruit" ...) in tasks, one after the other, and is
tested on all tasks so far after each. A stopped run resumes with the task that it had reached.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

import softprompt as sp
from softprompt.data import load_rows

LABEL = "subcategory"
METRICS = ("final_average", "incremental_average", "forgetting", "backward_transfer", "learning_accuracy")


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn kinds of emoji in tasks, one after the other.")
    parser.add_argument("--methods", nargs="+", default=["linear-probe", "vpt"], help="names of methods")
    parser.add_argument("--classes", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each task")
    parser.add_argument(
        "--rehearse", type=int, default=0, help="rows of each earlier class to train on again"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/class-incremental"))
    arguments = parser.parse_args()
    console = Console(width=120)

    train, test = (load_rows("emoji-google", split) for split in ("train", "test"))
    tested = {row[LABEL] for row in test}
    commonest = [label for label, _ in Counter(row[LABEL] for row in train).most_common() if label in tested]
    labels = sorted(commonest[: arguments.classes])
    train, test = ([row for row in rows if row[LABEL] in labels] for rows in (train, test))
    # Small images are enough to see what an emoji shows, and five times as fast.
    task = sp.ImageClassification(labels=labels, label_column=LABEL, image_size=98)
    backbone = sp.load_backbone("vit-s14-saliency")
    rehearsal = sp.Rehearsal(size=arguments.rehearse) if arguments.rehearse else None

    table = Table(title=f"{len(labels)} classes in {arguments.tasks} tasks, {len(test)} test images")
    for column in ("", *METRICS):
        table.add_column(column.replace("_", " "), justify="right" if column else "left")
    for name in arguments.methods:
        method = sp.methods()[name]()
        found = sp.class_incremental_run(
            backbone,
            task,
            method,
            train,
            test,
            tasks=arguments.tasks,
            order_seed=0,
            recipe=sp.Recipe(steps=arguments.steps),
            rehearsal=rehearsal,
            folder=arguments.output / f"{name}-{arguments.rehearse}-{arguments.steps}",
        )
        table.add_row(name, *(f"{found.metrics[metric]:.3f}" for metric in METRICS))
        joint = sp.joint_training(
            backbone,
            task,
            method,
            train,
            test,
            tasks=arguments.tasks,
            order_seed=0,
            recipe=sp.Recipe(steps=arguments.steps * arguments.tasks),
            file=arguments.output / f"joint-{arguments.steps}.json",
        )
        table.add_row(f"{name}, all classes at once", f"{joint['final_average']:.3f}")
    console.print(table)


if __name__ == "__main__":
    main()
