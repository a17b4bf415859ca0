"""Markdown tables of what `studies.language` found.

python -m studies.language_tables docs/results/language-methods.json
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.language import ABROAD, CARRIED, DECODER, ENCODER, FACTORS, HOME, SEEDS, SETS, TRAINED

Runs = Mapping[str, Mapping[str, Any]]


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation; how many, where they are not as many as there are seeds."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return text if len(values) in (1, len(SEEDS)) else f"{text} ({len(values)} runs)"


def points(runs: Runs, keys: Iterable[str], read: Callable[[Mapping[str, Any]], float]) -> list[float]:
    return [100 * read(runs[key]) for key in keys if key in runs]


def accuracy(run: Mapping[str, Any]) -> float:
    return run["test"]["accuracy"]


def lines(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def methods_table(runs: Runs, backbone: str) -> str:
    """Test accuracy by method and data set; what was trained, how long, and how much memory that took."""
    names = ["majority", "zero-shot", "8-shot", *TRAINED[backbone], "full-tuning"]
    body = []
    for name in dict.fromkeys(names):
        cells, found = [], []
        for data in SETS:
            keys = [f"{backbone}/{data}/{name}/{seed}" for seed in SEEDS]
            keys = [f"{data}/{name}"] if name == "majority" else [f"{backbone}/{data}/{name}", *keys]
            found += [runs[key] for key in keys if key in runs]
            cells.append(spread(points(runs, keys, accuracy)))
        if not found:
            continue
        trained = [run for run in found if "trained_parameters" in run]
        cost = ["", "", ""]
        if trained:
            cost = [
                f"{statistics.median(run['trained_parameters'] for run in trained):,.0f}",
                f"{statistics.median(run['cpu_seconds_of_training'] for run in trained):.0f}",
                f"{statistics.median(run['peak_extra_mib'] for run in trained):,.0f}",
            ]
        body.append([name, *cells, *cost])
    return lines(["", *SETS, "trained numbers", "CPU seconds", "MiB"], body)


def rates_table(runs: Runs, backbone: str) -> str:
    """Validation accuracy on the home data by share of the default learning rate, seed 0."""
    body = []
    for name in TRAINED[backbone]:
        keys = [f"{backbone}/rate/{name}/{factor}" for factor in FACTORS]
        if all(key in runs for key in keys):
            default = f"{runs[keys[FACTORS.index(1.0)]]['learning_rate']:.2g}"
            found = [f"{100 * runs[key]['validation']['accuracy']:.1f}" for key in keys]
            body.append([name, default, *found])
    return lines(["", "default", *(f"x {factor:g}" for factor in FACTORS)], body)


def shift_table(runs: Runs, backbone: str) -> str:
    """Test accuracy at home and on data that the prompt was not tuned on."""
    body: list[list[str]] = []
    for name in CARRIED:
        keys = [f"{backbone}/{HOME}/{name}/{seed}" for seed in SEEDS]
        if any(key in runs for key in keys):
            home = spread(points(runs, keys, accuracy))
            away = [
                spread(points(runs, keys, lambda run, other=other: run["abroad"][other]["accuracy"]))  # type: ignore[misc]
                for other in ABROAD
            ]
            body.append([name, home, *away])
    if body:
        always = (points(runs, [f"{data}/majority"], accuracy) for data in (HOME, *ABROAD))
        body.insert(0, ["always the commonest label there", *map(spread, always)])
    return lines(
        ["tuned on hotels, tested on", "hotels", *(n.removeprefix("multiemo-") for n in ABROAD)], body
    )


def ensemble_table(runs: Runs, backbone: str) -> str:
    """Five prompts: their mean, the best of them, and both rules of putting them together."""
    body, rules = [], []
    for data in SETS:
        found = [run for key, run in runs.items() if key.startswith(f"{backbone}/{data}/ensemble/")]
        if found:
            rules = list(found[0]["rules"])
            body.append(
                [data, spread([100 * run["mean"] for run in found])]
                + [spread([100 * max(run["members"]) for run in found])]
                + [spread([100 * run["rules"][rule] for run in found]) for rule in rules]
            )
    return lines(["", "mean of 5", "best of 5 (on test)", *rules], body)


def ablation_table(runs: Runs, backbone: str) -> str:
    """Validation accuracy of Prompt Tuning by length, start and steps, and of DePT by its rates."""
    start = f"{backbone}/ablation/"
    kinds = dict.fromkeys(key.removeprefix(start).rsplit("/", 1)[0] for key in runs if key.startswith(start))
    body = []
    for kind in kinds:
        keys = [f"{start}{kind}/{seed}" for seed in SEEDS]
        body.append(
            [kind.replace("/", " "), spread(points(runs, keys, lambda run: run["validation"]["accuracy"]))]
        )
    return lines(["", "validation accuracy"], body)


def few_shot_table(runs: Runs, backbone: str) -> str:
    """DePT on few rows, with and without a source prompt."""
    body = []
    for kind, label in (("own", "from its own start"), ("source", "from a prompt of hotel reviews")):
        cells = []
        for k in (4, 16, 32):
            keys = [f"{backbone}/few-shot/{k}/{kind}/{seed}" for seed in SEEDS]
            cells.append(spread(points(runs, keys, accuracy)))
        body.append([label, *cells])
    return lines(["DePT, product reviews", "4 per class", "16", "32"], body)


def tables(runs: Runs) -> str:
    """All of them, of both backbones, each under what it shows."""
    kinds = (methods_table, rates_table, shift_table, ensemble_table, ablation_table, few_shot_table)
    return "\n\n".join(
        f"{backbone}: {(table.__doc__ or '').strip()}\n\n{table(runs, backbone)}"
        for backbone in (DECODER, ENCODER)
        for table in kinds
    )


def main() -> None:
    print(tables(json.loads(Path(sys.argv[1]).read_text())))


if __name__ == "__main__":
    main()
