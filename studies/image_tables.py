"""The tables of docs/results/images.md, out of what the reports of its three studies wrote.

    python -m studies.image_tables              # print them
    python -m studies.image_tables --costs      # and write costs.md and costs-median.md beside each runs.csv anew

Scores and costs are read from docs/results/images/*/runs.csv, what is forgotten from class-incremental/tasks.md; what always
giving the commonest label scores is counted on the studies' test rows.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

from softprompt.files import write_text
from softprompt.fitting.run_config import source_rows
from softprompt.studies import Outcome, Plan, PlannedRun, Study, plan, read_study
from softprompt.studies.results import COSTS, Result, StudyResults, condition_of, line_of
from softprompt.studies.tables import Table, as_markdown, cost_table

HERE = Path(__file__).parent
FOUND = HERE.parent / "docs" / "results" / "images"
STUDIES = ("vpt", "vpt-clothes", "class-incremental")
COMMONEST = "always the commonest label"
IN_TASKS = (
    "linear probe", "linear probe, all logits", "full tuning", "full tuning, all logits", "VPT-deep", "L2P",
    "L2P, one choice for a batch", "DualPrompt", "linear probe, all classes at once", "L2P, all classes at once",
    "full tuning, all classes at once",
)  # fmt: skip


@cache
def study_of(name: str) -> Study:
    return read_study(HERE / f"{name}.yaml")


@cache
def results_of(name: str) -> StudyResults:
    """The final runs of a study, as its runs.csv tells of them."""
    with (FOUND / name / "runs.csv").open(encoding="utf-8", newline="") as file:
        finals = [as_result(study_of(name), row) for row in csv.DictReader(file) if row["stage"] == "final"]
    return StudyResults(study_of(name), Plan(()), finals, (), (), 0, ("test",))


def as_result(study: Study, row: Mapping[str, str]) -> Result:
    """A final run out of a row of runs.csv, which has its memory in MiB."""
    costs = {name: float(row[name]) for name in COSTS if row.get(name)}
    peak = {"host": costs["host"] * 2**20}
    if "memory" in costs:
        peak["host_before"] = (costs["host"] - costs["memory"]) * 2**20
    facts: dict[str, Any] = {
        **{name: costs[name] for name in ("trained_parameters", "seconds", "wall_seconds", "cpu_seconds")},
        "times": {name: costs[name] for name in ("evaluation",) if name in costs},
        "peak_memory": peak,
        "main_metric": row["metric"],
        "metrics": {"test": {row["metric"]: float(row["test"])}},
    }
    cell = {axis: row[axis] for axis in study.axes}
    chosen = dict(setting.split("=", 1) for setting in row["chosen"].split())
    run = PlannedRun(row["run"], {}, cell, int(row["seed"]), "final", chosen)
    return Result(run, Outcome("finished", facts), line_of(study, run), condition_of(study, cell))


def planned(name: str, condition: str, line: str | None = None) -> PlannedRun:
    """A final run of the study's file that waits for no choice."""
    study = study_of(name)
    return next(
        run
        for run in plan(study, lambda _: None).runs
        if run.stage == "final"
        and condition_of(study, run.cell) == condition
        and line in (None, line_of(study, run))
    )


def methods_table() -> Table:
    """VPT and its baselines on two data sets. Seconds and memory are medians."""
    cifar, clothes = results_of("vpt"), results_of("vpt-clothes")
    [natural] = cifar.conditions
    few, many = clothes.conditions
    heads = ["", "rate", natural.removesuffix(" rows"), f"Fashion-MNIST, {few}", "Fashion-MNIST, 1,000"]
    heads += ["trained", "CPU s, CIFAR-10", "CPU s, Fashion-MNIST, 1,000", "MiB, Fashion-MNIST, 1,000"]
    places = (("vpt", natural), ("vpt-clothes", few), ("vpt-clothes", many))
    rows = [[COMMONEST, "", *(f"{100 * commonest(*place):.1f}" for place in places), "0", "", "", ""]]
    rows += [
        [
            line,
            rate(cifar, natural, line),
            *(accuracy(results_of(name), line, condition) for name, condition in places),
            cost(cifar, line, natural, "trained_parameters"),
            cost(cifar, line, natural, "cpu_seconds"),
            cost(clothes, line, many, "cpu_seconds"),
            cost(clothes, line, many, "memory"),
        ]
        for line in sorted(cifar.lines, key=lambda line: "400 steps" in line)  # what was added stands last
    ]
    return heads, rows


def task_table(condition: str) -> Table:
    """Classes that come in tasks. Of all classes at once there is one accuracy."""
    results = results_of("class-incremental")
    measured = in_tasks()
    heads = [
        "",
        "final average",
        "incremental average",
        "learning accuracy",
        "forgetting",
        "trained",
        "CPU s",
    ]
    always = f"{100 * commonest('class-incremental', condition):.1f}"
    rows = [[COMMONEST, always, "", "", "", "0", ""]]
    for line in IN_TASKS:
        own = measured[f"{condition}, {line}"]
        rows.append(
            [
                line,
                accuracy(results, line, condition),
                *(own[1:4] if own[3] else ["", "", ""]),
                cost(results, line, condition, "trained_parameters"),
                cost(results, line, condition, "cpu_seconds"),
            ]
        )
    return heads, rows


def in_tasks() -> dict[str, list[str]]:
    """The report's table of tasks in points: final and incremental average, learning accuracy, forgetting."""
    lines = (FOUND / "class-incremental" / "tasks.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: [in_points(share) for share in shares[:4]] for name, *shares in cells}


def in_points(shares: str) -> str:
    """ "0.295 ± 0.014" as "29.5 ± 1.4"."""
    return " ± ".join(f"{100 * float(share):.1f}" for share in shares.split(" ± ") if share)


def accuracy(results: StudyResults, line: str, condition: str) -> str:
    scores = [100 * score for score in results.scores(line, condition, "test").values()]
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f}" if scores else ""


def cost(results: StudyResults, line: str, condition: str, name: str) -> str:
    found = results.cost(line, name, statistics.median, condition)
    return "" if found is None else f"{found:,.0f}"


def rate(results: StudyResults, condition: str, line: str) -> str:
    """The learning rate that was chosen, or that the study's file names."""
    chosen: Sequence[Any] = list(results.of(line, condition)[0].run.chosen.values())
    [found] = chosen or [planned("vpt", condition, line).values["recipe"]["learning_rate"]]
    return f"{Decimal(str(found)):f}"


@cache
def commonest(name: str, condition: str) -> float:
    """The share of the commonest label among the test rows."""
    config = planned(name, condition).settings().config
    task: Any = config.task
    assert config.data.test is not None
    labels = Counter(map(task.read_label, source_rows(config.data.test, "test")))
    return max(labels.values()) / labels.total()


def tables() -> str:
    conditions = results_of("class-incremental").conditions
    found = [methods_table(), *(task_table(condition) for condition in conditions)]
    return "\n".join(as_markdown(table) for table in found)


def costs(name: str) -> dict[str, str]:
    """The report's two tables of costs, by file."""
    results = results_of(name)
    return {
        "costs.md": as_markdown(cost_table(results)),
        "costs-median.md": as_markdown(cost_table(results, statistics.median)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", action="store_true", help="write the tables of costs beside runs.csv anew")
    if parser.parse_args().costs:
        for name in STUDIES:
            for file, text in costs(name).items():
                write_text(FOUND / name / file, text)
    print(tables(), end="")


if __name__ == "__main__":
    main()
