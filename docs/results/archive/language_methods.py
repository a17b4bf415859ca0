"""Archive of a published figure, as of commit 3cfa151: the tables of docs/results/language-methods.md.

    python -m docs.results.archive.language_methods

The encoder's and both backbones' learning rates are in language-methods.json, which language_methods_runs.py wrote; the
decoder's methods in language/, out of the reports of studies/decoder-methods.yaml and decoder-probe.yaml.
"""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]
FOUND = Path(__file__).parents[1]
SEEDS = (0, 1, 2)
DECODER, ENCODER = "smollm2-135m-instruct", "minilm-l6"
FACTORS = (0.3, 1.0, 3.0)  # of a method's default learning rate
HOME = "multiemo-hotels"
ABROAD = ("multiemo-products", "multiemo-medicine", "multiemo-reviews")
SETS = (HOME, "vitaminc", "question-types")
CARRIED = ("prompt-tuning", "dept", "p-tuning-v2", "lora", "full-tuning")  # to other domains
TRAINED = {
    DECODER: (
        "linear-probe", "prompt-tuning", "p-tuning", "dept", "prefix-tuning", "p-tuning-v2", "adapter", "lora",
    ),
    ENCODER: (
        "linear-probe", "mlp-probe", "prompt-tuning", "p-tuning", "dept", "prefix-tuning", "p-tuning-v2", "bitfit",
        "adapter", "lora", "full-tuning",
    ),
}  # fmt: skip
REPORTS = ("decoder-methods", "decoder-probe")  # in FOUND / "language"
NAMES = {
    "linear-probe": "linear probe",
    "mlp-probe": "MLP probe",
    "prompt-tuning": "Prompt Tuning",
    "p-tuning": "P-tuning",
    "dept": "DePT",
    "prefix-tuning": "Prefix-Tuning",
    "p-tuning-v2": "P-tuning v2",
    "bitfit": "BitFit",
    "adapter": "adapter",
    "lora": "LoRA",
    "full-tuning": "full fine-tuning",
    "multiemo-hotels": "hotels",
    "multiemo-products": "products",
    "multiemo-medicine": "medicine",
    "multiemo-reviews": "reviews of university courses",
    "vitaminc": "VitaminC",
    "question-types": "question types",
    "probability": "mean probability",
    "vote": "majority vote",
    "logit": "mean logit",
}


def name(key: str) -> str:
    return NAMES.get(key, key)


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


def lines(head: Sequence[str], body: Iterable[Sequence[str]], rule: Sequence[str] = ()) -> str:
    """A table whose first column is text and whose others are numbers, unless `rule` says otherwise."""
    rule = rule or ["---", *["---:"] * (len(head) - 1)]
    first, *rows = [
        "|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in [head, *body]
    ]
    return "\n".join([first, "|" + "|".join(rule) + "|", *rows])


def commonest(runs: Runs, sets: Iterable[str], width: int = 0) -> list[str]:
    """The line of what always the commonest label has, filled up with empty cells."""
    cells = [spread(points(runs, [f"{data}/majority"], accuracy)) for data in sets]
    return ["always the commonest label", *cells, *[""] * (width - len(cells))]


def decoder_table() -> str:
    """Test accuracy by method and data set; what was trained, how long a run took, and how much memory."""
    found: list[dict[str, str]] = []
    for report in REPORTS:
        with (FOUND / "language" / report / "runs.csv").open(encoding="utf-8", newline="") as file:
            found += csv.DictReader(file)
    sets = [name(data) for data in SETS]
    scores = (FOUND / "language" / REPORTS[0] / "scores.md").read_text(encoding="utf-8").splitlines()
    head, always = ([cell.strip() for cell in scores[at].strip("|").split("|")] for at in (0, -1))
    body = [
        [
            always[0],
            *(f"{100 * float(always[head.index(f'{data}, accuracy')]):.1f}" for data in sets),
            *[""] * 3,
        ]
    ]
    for method in dict.fromkeys(run["method"] for run in found):
        own = [run for run in found if run["method"] == method]
        cells = [spread([100 * float(run["test"]) for run in own if run["data"] == data]) for data in sets]
        costs = [
            statistics.median(float(run[what]) for run in own)
            for what in ("trained_parameters", "cpu_seconds", "memory")
        ]
        body.append([method, *cells, *(f"{median:,.0f}" for median in costs)])
    return lines(["", *sets, "trained numbers", "CPU seconds", "MiB"], body)


def methods_table(runs: Runs, backbone: str) -> str:
    """Test accuracy by method and data set; what was trained, how long, and how much memory that took, on hotels."""
    body = [commonest(runs, SETS, width=len(SETS) + 3)]
    for method in TRAINED[backbone]:
        cells = [
            spread(points(runs, [f"{backbone}/{data}/{method}/{seed}" for seed in SEEDS], accuracy))
            for data in SETS
        ]
        cost = runs.get(f"{backbone}/cost/{method}", {})
        names = ("trained_parameters", "cpu_seconds_of_training", "peak_extra_mib")
        body.append([name(method), *cells, *(f"{cost[of]:,.0f}" if of in cost else "" for of in names)])
    return lines(["", *map(name, SETS), "trained numbers", "CPU seconds", "MiB"], body)


def shift_table(runs: Runs, backbone: str) -> str:
    """Tuned on hotel reviews: test accuracy there and on data that the prompt was not tuned on."""
    body = [commonest(runs, (HOME, *ABROAD))]
    for method in CARRIED:
        keys = [f"{backbone}/{HOME}/{method}/{seed}" for seed in SEEDS]
        home = spread(points(runs, keys, accuracy))
        away = [
            spread(points(runs, keys, lambda run, other=other: run["abroad"][other]["accuracy"]))  # type: ignore[misc]
            for other in ABROAD
        ]
        body.append([name(method), home, *away])
    return lines(["", *map(name, (HOME, *ABROAD))], body)


def few_shot_table(runs: Runs, backbone: str) -> str:
    """DePT on few rows of product reviews, with and without a source prompt: test accuracy."""
    body = []
    for kind, label in (("own", "from its own start"), ("source", "from a prompt of hotel reviews")):
        cells = []
        for k in (4, 16, 32):
            keys = [f"{backbone}/few-shot/{k}/{kind}/{seed}" for seed in SEEDS]
            cells.append(spread(points(runs, keys, accuracy)))
        body.append([label, *cells])
    return lines(["rows of each class", "4", "16", "32"], body)


def ensemble_table(runs: Runs, backbone: str) -> str:
    """Five prompts: their mean, the best of them, and the rules of putting them together: test accuracy."""
    body, rules = [], []
    for data in SETS:
        found = [run for key, run in runs.items() if key.startswith(f"{backbone}/{data}/ensemble/")]
        if found:
            rules = list(found[0]["rules"])
            body.append(
                [name(data), spread([100 * run["mean"] for run in found])]
                + [spread([100 * max(run["members"]) for run in found])]
                + [spread([100 * run["rules"][rule] for run in found]) for rule in rules]
            )
    return lines(["", "mean of the five", "best of the five, on test", *map(name, rules)], body)


def ablation_table(runs: Runs, backbone: str) -> str:
    """Prompt Tuning by length, start and steps, and DePT by its rates: validation accuracy on hotel reviews."""
    start = f"{backbone}/ablation/"
    names = {"uniform": "uniform noise", "vocab": "common words", "labels": "class labels"}
    names |= {"one rate": "one rate, that of P", "one small rate": "one rate, that of A and B"}
    kinds = dict.fromkeys(key.removeprefix(start).rsplit("/", 1)[0] for key in runs if key.startswith(start))
    columns: dict[str, list[tuple[str, str]]] = {}
    for kind in kinds:
        what, setting = kind.split("/")
        keys = [f"{start}{kind}/{seed}" for seed in SEEDS]
        cell = spread(points(runs, keys, lambda run: run["validation"]["accuracy"]))
        columns.setdefault(what, []).append((names.get(setting, setting), cell))
    titles = {"length": "tokens", "init": "start", "steps": "steps", "dept": "DePT"}
    for found in columns.values():
        if all(setting.isdigit() for setting, _ in found):
            found.sort(key=lambda pair: int(pair[0]))
    body = [
        [cell for pair in row for cell in pair]
        for row in zip_longest(*(columns.get(what, []) for what in titles), fillvalue=("", ""))
    ]
    head = [cell for title in titles.values() for cell in (title, "")]
    return lines(head, body, rule=["---", "---:"] * len(titles))


def rates_table(runs: Runs, backbone: str) -> str:
    """Validation accuracy on hotel reviews by share of the learning rate, seed 0."""
    body = []
    for method in TRAINED[backbone]:
        keys = [f"{backbone}/rate/{method}/{factor}" for factor in FACTORS]
        if all(key in runs for key in keys):
            default = f"{runs[keys[FACTORS.index(1.0)]]['learning_rate']:.2g}"
            found = [f"{100 * runs[key]['validation']['accuracy']:.1f}" for key in keys]
            body.append([name(method), default, *found])
    return lines(["", "rate", *(f"x {factor:g}" for factor in FACTORS)], body)


def tables() -> str:
    """All, in the page's order, each under what it shows."""
    runs = json.loads((FOUND / "language-methods.json").read_text(encoding="utf-8"))
    kinds = (methods_table, shift_table, few_shot_table, ensemble_table, ablation_table)
    found = [(ENCODER, table) for table in kinds] + [(DECODER, rates_table), (ENCODER, rates_table)]
    parts = [f"{DECODER}: {decoder_table.__doc__}\n\n{decoder_table()}"]
    parts += [
        f"{backbone}: {(table.__doc__ or '').strip()}\n\n{table(runs, backbone)}" for backbone, table in found
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(tables())
