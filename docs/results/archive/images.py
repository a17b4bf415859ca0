"""Archive of published figures, as of commit 3cfa151: the tables of docs/results/images.md, out of images/ beside it.

    python -m docs.results.archive.images

Scores and costs are read from images/*/runs.csv, which the studies' reports wrote, what is forgotten from
class-incremental/tasks.md.
"""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from pathlib import Path

from docs.results.archive.markdown import table

FOUND = Path(__file__).parents[1] / "images"
CONDITIONS = {"vpt": "rows", "vpt-clothes": "rows", "class-incremental": "classes"}
"""A study, and the column of its runs that a method is not compared over."""
COMMONEST = "always the commonest label"
SHARES = {
    "CIFAR-10, 1,000 rows": (229, 1939),
    "16 a class": (58, 500),
    "1,000 rows": (58, 500),
    "20 kinds of emoji": (18, 168),
    "Fashion-MNIST": (24, 200),
}
"""Test rows of the commonest label and of all, counted on the rows that the studies name."""
COSTS = {
    "trained_parameters": "trained parameters",
    "seconds": "seconds in steps",
    "evaluation": "seconds in evaluations",
    "wall_seconds": "seconds in all",
    "cpu_seconds": "CPU seconds",
    "host": "peak memory of the process, MiB",
    "memory": "peak memory, MiB",
}
IN_TASKS = (
    "linear probe", "linear probe, all logits", "full tuning", "full tuning, all logits", "VPT-deep", "L2P",
    "L2P, one choice for a batch", "DualPrompt", "linear probe, all classes at once", "L2P, all classes at once",
    "full tuning, all classes at once",
)  # fmt: skip

Average = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Runs:
    """The final runs of a study, as rows of its runs.csv."""

    rows: Sequence[Mapping[str, str]]
    condition: str

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row["method"] for row in self.rows))

    @property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(row[self.condition] for row in self.rows))

    def of(self, method: str, condition: str | None = None) -> list[Mapping[str, str]]:
        return [
            row for row in self.rows if row["method"] == method and condition in (None, row[self.condition])
        ]

    def cost(self, name: str, method: str, condition: str | None, average: Average) -> float | None:
        found = [float(row[name]) for row in self.of(method, condition) if row.get(name)]
        return average(found) if found else None


@cache
def runs_of(study: str) -> Runs:
    with (FOUND / study / "runs.csv").open(encoding="utf-8", newline="") as file:
        return Runs([row for row in csv.DictReader(file) if row["stage"] == "final"], CONDITIONS[study])


def methods_table() -> str:
    """VPT and its baselines on two data sets. Seconds and memory are medians."""
    cifar, clothes = runs_of("vpt"), runs_of("vpt-clothes")
    [natural] = cifar.conditions
    few, many = clothes.conditions
    heads = ["", "rate", natural.removesuffix(" rows"), f"Fashion-MNIST, {few}", "Fashion-MNIST, 1,000"]
    heads += ["trained", "CPU s, CIFAR-10", "CPU s, Fashion-MNIST, 1,000", "MiB, Fashion-MNIST, 1,000"]
    places = ((cifar, natural), (clothes, few), (clothes, many))
    body = [[COMMONEST, "", *(commonest(condition) for _, condition in places), "0", "", "", ""]]
    body += [
        [
            method,
            rate(cifar, method),
            *(accuracy(runs, method, condition) for runs, condition in places),
            median(cifar, "trained_parameters", method, natural),
            median(cifar, "cpu_seconds", method, natural),
            median(clothes, "cpu_seconds", method, many),
            median(clothes, "memory", method, many),
        ]
        for method in sorted(
            cifar.methods, key=lambda name: "400 steps" in name
        )  # what was added stands last
    ]
    return table(heads, body)


def task_table(condition: str) -> str:
    """Classes that come in tasks. Of all classes at once there is one accuracy."""
    runs, measured = runs_of("class-incremental"), in_tasks()
    heads = [
        "",
        "final average",
        "incremental average",
        "learning accuracy",
        "forgetting",
        "trained",
        "CPU s",
    ]
    body = [[COMMONEST, commonest(condition), "", "", "", "0", ""]]
    for method in IN_TASKS:
        own = measured[f"{condition}, {method}"]
        body.append(
            [
                method,
                accuracy(runs, method, condition),
                *(own[1:4] if own[3] else ["", "", ""]),
                median(runs, "trained_parameters", method, condition),
                median(runs, "cpu_seconds", method, condition),
            ]
        )
    return table(heads, body)


def in_tasks() -> dict[str, list[str]]:
    """The report's table of tasks in points: final and incremental average, learning accuracy, forgetting."""
    lines = (FOUND / "class-incremental" / "tasks.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: [in_points(share) for share in shares[:4]] for name, *shares in cells}


def in_points(shares: str) -> str:
    """ "0.295 ± 0.014" as "29.5 ± 1.4"."""
    return " ± ".join(f"{100 * float(share):.1f}" for share in shares.split(" ± ") if share)


def accuracy(runs: Runs, method: str, condition: str) -> str:
    scores = [100 * float(row["test"]) for row in runs.of(method, condition)]
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" if scores else ""


def median(runs: Runs, name: str, method: str, condition: str) -> str:
    found = runs.cost(name, method, condition, statistics.median)
    return "" if found is None else f"{found:,.0f}"


def rate(runs: Runs, method: str) -> str:
    """The learning rate that was chosen; of what has 400 steps, that of 100 steps."""
    chosen = runs.of(method.removesuffix(", 400 steps"))[0]["chosen"]
    return f"{Decimal(chosen.partition('=')[2]):f}"


def commonest(condition: str) -> str:
    own, all_rows = SHARES[condition]
    return f"{100 * own / all_rows:.1f}"


def costs(study: str, average: Average = statistics.fmean) -> str:
    """What the runs of each method took on average, condition by condition."""
    runs = runs_of(study)
    names = [name for name in COSTS if any(row.get(name) for row in runs.rows)]
    several = len(runs.conditions) > 1
    return table(
        ["", *(COSTS[name] for name in names)],
        [
            [
                f"{condition}, {method}" if several else method,
                *(number(runs.cost(name, method, condition, average)) for name in names),
            ]
            for condition, method in itertools.product(runs.conditions, runs.methods)
            if runs.of(method, condition)
        ],
    )


def number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def tables() -> str:
    conditions: Iterable[str] = runs_of("class-incremental").conditions
    return "\n".join([methods_table(), *map(task_table, conditions)])


if __name__ == "__main__":
    print(tables(), end="")
