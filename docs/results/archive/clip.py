"""Archive of a published figure, as of commit 3cfa151: the tables of docs/results/clip.md, out of the recorded runs.

    python -m docs.results.archive.clip

The runs of clip.json are those of clip_runs.py, those of clip-few-shot.csv of studies/clip-few-shot.yaml.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from docs.results.archive.markdown import table

Runs = Mapping[str, Mapping[str, Any]]
RESULTS = Path(__file__).parents[1]
FEW_SHOT = RESULTS / "clip-few-shot.csv"
SEEDS = (0, 1, 2)
PAIRS = (("google", "twitter"), ("twitter", "fluent"))
STEPS = 40
THRESHOLD = 0.5
SURE = {f"DAPL, threshold {threshold}": threshold for threshold in (0.7, 0.9)}
PROBED = (1, 2, 4, 8, 16)
PROBE, OPTIMAL = "linear probe", "linear probe, C searched for"
COMMONEST = "always the commonest label"
TEMPLATE = "an emoji of {}."
MANY = "CoCoOp, as many images"
CONTEXTS = {
    "CoOp": (10, "rate chosen of two"),
    "CoCoOp": (3, "its default rate"),
    MANY: (10, "rate chosen of two"),
}
"""Images of a batch, and where the learning rate is from."""
FEW_STEPS, FEW_BATCH = 60, 9  # of CoOp in studies/clip-few-shot.yaml
ADAPTED = ("CoOp on the source", "CoOp with pseudo-labels", "DAPL without pseudo-labels", "DAPL")


def few_rows_table(runs: Runs) -> str:
    """Accuracy by rows of each class."""
    with FEW_SHOT.open(encoding="utf-8", newline="") as file:
        known = [row for row in csv.DictReader(file) if row["stage"] == "final"]

    def by_shots(method: str) -> list[str]:
        return [
            points([float(r["test"]) for r in known if (r["method"], r["shots"]) == (method, str(shots))])
            for shots in PROBED
        ]

    def probed(name: str) -> list[str]:
        return [points([run["accuracy"] for run in of(runs, f"{name}/{shots}")]) for shots in PROBED]

    majority = points([runs["few rows/majority"]["accuracy"]])
    many = points([run["accuracy"] for run in of(runs, f"few rows/{MANY}")])
    return table(
        ["rows of each class", *map(str, PROBED)],
        [
            [COMMONEST, *[majority] * len(PROBED)],
            [f'zero-shot, "{TEMPLATE}"', *by_shots("zero-shot")],
            [f"{PROBE}, rate and decay searched for", *probed(PROBE)],
            [OPTIMAL, *probed(OPTIMAL)],
            [told("CoOp", FEW_STEPS, FEW_BATCH), *by_shots("CoOp")],
            [told("CoCoOp"), *by_shots("CoCoOp")],
            [told(MANY, FEW_STEPS, FEW_BATCH), *[""] * (len(PROBED) - 1), many],
        ],
    )


def halves_table(runs: Runs) -> str:
    """Base-to-new, with both averages of H."""
    tuned = {name: of(runs, f"base-to-new/{name}") for name in CONTEXTS}
    counted = runs["base-to-new/majority"]
    first = next(iter(tuned.values()))[0]
    untrained = {
        "chance": (1 / counted["base_classes"], 1 / counted["new_classes"]),
        COMMONEST: (counted["base"], counted["new"]),
        "zero-shot": (first["zero_shot_base"], first["zero_shot_new"]),
    }
    lines = {name: [pair] for name, pair in untrained.items()} | {
        told(name): [(run["base"], run["new"]) for run in found] for name, found in tuned.items()
    }
    return table(
        ["", "base", "new", "H of the means", "mean of H"],
        [
            [name, *(points(half) for half in zip(*pairs, strict=True)), *both(pairs)]
            for name, pairs in lines.items()
        ],
    )


def adapted_table(runs: Runs) -> str:
    """Accuracy on the target, of rows and in the mean over classes."""
    body = [[COMMONEST], ["zero-shot"], *([name] for name in (*ADAPTED, *SURE))]
    for pair in (f"{source} to {target}" for source, target in PAIRS):
        first = of(runs, f"{pair}/DAPL")[0]
        cells = [[points([first["majority"]]), ""]]
        cells.append([points([first[f"zero_shot{kind}"]]) for kind in ("", "_mean_class_accuracy")])
        for name in (*ADAPTED, *SURE):
            found = of(runs, f"{pair}/{name}")
            cells.append([points([run[key] for run in found]) for key in ("accuracy", "mean_class_accuracy")])
        for row, own in zip(body, cells, strict=True):
            row += own
    heads = (head for a, b in PAIRS for head in (f"{a} to {b}", "mean over classes"))
    return table(["", *heads], body)


def pseudo_table(runs: Runs) -> str:
    """Shares of target rows that have a pseudo-label by threshold, the same for each seed, and of these right ones."""
    body = []
    for name, threshold in {"DAPL": THRESHOLD, **SURE}.items():
        firsts = [of(runs, f"{source} to {target}/{name}")[0] for source, target in PAIRS]
        cells = [points([first[key]]) for first in firsts for key in ("kept", "right")]
        body.append([f"threshold {threshold}", *cells])
    heads = (head for a, b in PAIRS for head in (f"{a} to {b}", "of these right"))
    return table(["pseudo-labels of the target", *heads], body)


def told(name: str, steps: int = STEPS, batch_size: int | None = None) -> str:
    """A context's name with what it was trained on."""
    own, chosen = CONTEXTS[name]
    return f"{name} ({steps} steps of {batch_size or own} images; {chosen})"


def of(runs: Runs, prefix: str) -> list[Mapping[str, Any]]:
    """The runs of all seeds."""
    return [runs[f"{prefix}/{seed}"] for seed in SEEDS]


def both(pairs: Sequence[tuple[float, float]]) -> list[str]:
    """H = 2 base new / (base + new) of the means, and the mean of each pair's H."""
    of_means = statistics.harmonic_mean([statistics.fmean(half) for half in zip(*pairs, strict=True)])
    return [points([of_means]), points([statistics.fmean(map(statistics.harmonic_mean, pairs))])]


def points(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"


def tables() -> str:
    """The results as tables in Markdown, points: means and standard deviations over the seeds."""
    runs = json.loads((RESULTS / "clip.json").read_text(encoding="utf-8"))
    return "\n".join(part(runs) for part in (few_rows_table, halves_table, adapted_table, pseudo_table))


if __name__ == "__main__":
    print(tables(), end="")
