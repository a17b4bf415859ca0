"""What a study file cannot say of docs/results/clip.md: a grid of linear probes, base-to-new, and domain adaptation.

    python -m studies.dual_encoder --output docs/results/clip.json      # several processes may work on one file
    python -m studies.dual_encoder --tables docs/results/clip.json

Probes: rates and decays searched for on the rows of studies/clip-few-shot.yaml (the linear probe of CLIP and CoOp).
Base-to-new: subcategories of emoji in three styles, 16 rows of each base class (Zhou et al., CVPR 2022: CoCoOp).
Adaptation: google's emoji have labels, twitter's none; then twitter's have, fluent's none (Ge et al., 2022: DAPL). As in its
paper the images without labels are those that are tested on. Rates are chosen by validation rows that have labels: those of
base classes, and those of the source domain.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import softprompt as sp
from softprompt.backbones.base import Backbone
from softprompt.data import few_shot, load_rows, subsample
from softprompt.protocols import (
    base_and_new,
    base_to_new_runs,
    few_shot_splits,
    harmonic_means,
    probe_grid,
)
from studies.runs import Run, Study

SEEDS = (0, 1, 2)
STYLES = ("google", "twitter", "fluent")
PAIRS = (("google", "twitter"), ("twitter", "fluent"))
STEPS = 40
RATES = (0.002, 0.01)
SEARCHED = ("CoOp",)  # CoCoOp, which takes ten times as long, has the first rate
SPLITS = ("train", "validation")
THRESHOLD = 0.5  # of the released code
SHOTS = 16
PROBED = (1, 4, 16)

SUBCATEGORIES = {
    "animal-bird": "bird", "animal-mammal": "mammal", "arrow": "arrow", "clothing": "clothing", "drink": "drink",
    "face-concerned": "concerned face", "food-prepared": "prepared food", "game": "game", "geometric": "geometric shape",
    "heart": "heart", "household": "household thing", "person-role": "person at work", "person-sport": "person doing sport",
    "place-building": "building", "sky & weather": "weather", "sport": "sports equipment", "time": "clock", "tool": "tool",
    "transport-ground": "vehicle", "zodiac": "zodiac sign",
}  # fmt: skip
CATEGORIES = {
    "Activities": "sport", "Animals & Nature": "animal", "Flags": "flag", "Food & Drink": "food", "Objects": "object",
    "People & Body": "person", "Smileys & Emotion": "face", "Symbols": "symbol", "Travel & Places": "place",
}  # fmt: skip
HALVES = sp.ImageTextClassification(
    labels=list(SUBCATEGORIES), names=SUBCATEGORIES, label_column="subcategory", template="an emoji of {}."
)
PLAIN = sp.ImageTextClassification(
    labels=list(CATEGORIES),
    names=CATEGORIES,
    label_values={"Component": "Symbols"},
    template="an emoji of {}.",
)
HEAD = sp.ImageClassification(labels=list(CATEGORIES), label_values={"Component": "Symbols"})
CONTEXTS: Mapping[str, sp.Method] = {"CoOp": sp.CoOp(length=4), "CoCoOp": sp.CoCoOp(length=4)}
ADAPTED: Mapping[str, tuple[sp.Method, float]] = {
    "CoOp on the source": (sp.CoOp(length=4), 0.0),
    "CoOp with pseudo-labels": (sp.CoOp(length=4), 1.0),
    "DAPL without pseudo-labels": (sp.DAPL(length=4, domain_length=4), 0.0),
    "DAPL": (sp.DAPL(length=4, domain_length=4), 1.0),
}


@cache
def backbone() -> Backbone:
    return sp.load_backbone("emoji-clip", dtype="float32")


@cache
def rows(style: str, split: str, limit: int | None = None) -> list[dict[str, Any]]:
    """Of one style; the same ones in every run."""
    found = load_rows(f"emoji-{style}", split)
    return found if limit is None else subsample(found, limit, seed=0)


def probe_run(shots: int, seed: int) -> Run:
    """The best of a grid of heads by the validation rows, and what it says of the test rows."""
    train = rows("google", "train")
    [split] = few_shot_splits(train, PLAIN, [shots], [seed])
    found = probe_grid(
        backbone(),
        HEAD,
        [train[i] for i in split.train],
        rows("google", "validation", 60),
        recipe=sp.Recipe(steps=100, batch_size=9, evaluate_every=20, seed=seed),
    )
    metrics = found.best.evaluate(rows("google", "test", 200))
    best = max(score.score for score in found.scores)
    return {"accuracy": metrics["accuracy"], "rows": metrics["rows"], "validation": best}


def in_halves(split: str) -> list[dict[str, Any]]:
    """Of all styles those of the subcategories that are told apart."""
    return [row for style in STYLES for row in rows(style, split) if row["subcategory"] in SUBCATEGORIES]


def recipe(method: sp.Method, seed: int = 0) -> sp.Recipe:
    """CoCoOp's batches are smaller: each of its images brings texts of its own."""
    return sp.Recipe(steps=STEPS, batch_size=3 if isinstance(method, sp.CoCoOp) else 10, seed=seed)


@cache
def rate_of(name: str) -> float:
    """The rate that is best on validation rows of the base classes, by a run with another seed than the final ones."""
    rates = RATES if name in SEARCHED else RATES[:1]
    if len(rates) == 1:
        return rates[0]
    task = HALVES.with_labels(base_and_new(HALVES.labels)[0])
    base = {split: [row for row in in_halves(split) if row["subcategory"] in task.labels] for split in SPLITS}
    drawn = few_shot(base["train"], SHOTS, "subcategory", 1000)
    found = {}
    for rate in rates:
        how = replace(recipe(CONTEXTS[name], 1000), learning_rate=rate)
        tuned = sp.fit(backbone(), task, CONTEXTS[name], drawn, recipe=how, progress=False)
        found[rate] = tuned.evaluate(base["validation"])["accuracy"]
    return max(found, key=lambda rate: found[rate])


def halves_run(name: str, seed: int) -> Run:
    """Train on the base classes with the chosen rate, read the test rows of both halves once."""
    found = base_to_new_runs(
        backbone(),
        HALVES,
        CONTEXTS[name],
        in_halves("train"),
        in_halves("test"),
        shots=SHOTS,
        seeds=(seed,),
        recipe=replace(recipe(CONTEXTS[name]), learning_rate=rate_of(name)),
    )
    return dict(found.records[0])


def adapted_run(name: str, source: str, target: str, seed: int) -> Run:
    """The source's labelled rows, 16 of each class, choose rate and step; the target's test rows are read once."""
    method, weight = ADAPTED[name]
    task = PLAIN
    if isinstance(method, sp.DAPL):
        domains = [source, target]
        task = replace(PLAIN, domains=domains, soft_template="{soft} {}, a {domain} image.")
    train = rows(source, "train")
    [split] = few_shot_splits(train, PLAIN, [SHOTS], [seed])
    drawn = [train[i] for i in split.train]
    test = rows(target, "test", 200)
    recipes = [replace(recipe(method, seed), learning_rate=rate, evaluate_every=STEPS // 2) for rate in RATES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.SoftpromptWarning)
        found = sp.adapt(
            backbone(),
            task,
            method,
            drawn,
            test,
            test,
            validation=rows(source, "validation", 60),
            threshold=THRESHOLD,
            target_weight=weight,
            recipes=recipes,
        )
    kept = (
        {} if found.pseudo is None else {"kept": found.pseudo.kept, "right": right(found.pseudo.rows, test)}
    )
    return {
        "accuracy": found.metrics["accuracy"],
        "mean_class_accuracy": found.metrics["mean_class_accuracy"],
        "zero_shot": found.zero_shot["accuracy"],
        "zero_shot_mean_class_accuracy": found.zero_shot["mean_class_accuracy"],
        "majority": found.metrics["majority_accuracy"],
        "rows": found.metrics["rows"],
        "learning_rate": RATES[found.recipe],
        **kept,
    }


def right(pseudo: Iterable[Mapping[str, Any]], test: Sequence[Mapping[str, Any]]) -> float:
    """Share of the pseudo-labels that are right: told afterwards, chosen by nowhere."""
    known = {row["image"]: PLAIN.read_label(row) for row in test}
    return statistics.fmean(known[row["image"]] == row["label"] for row in pseudo)


def conduct(study: Study) -> None:
    for seed in SEEDS:
        for shots in PROBED:
            study.run(f"linear probe/{shots}/{seed}", probe_run, shots, seed)
    for seed in SEEDS:
        for name in CONTEXTS:
            study.run(f"base-to-new/{name}/{seed}", halves_run, name, seed)
        for source, target in PAIRS:
            for name in ADAPTED:
                key = f"{source} to {target}/{name}/{seed}"
                study.run(key, adapted_run, name, source, target, seed)


def tables(study: Study) -> str:
    """Both results as tables in Markdown, points: means and standard deviations over the seeds."""
    lines = [f"| | {' | '.join(map(str, PROBED))} |", f"|---|{'---:|' * len(PROBED)}"]
    cells = [points([run["accuracy"] for run in of(study, f"linear probe/{shots}")]) for shots in PROBED]
    lines += [f"| linear probe | {' | '.join(cells)} |", ""]
    lines += ["| | base | new | H of the means | mean of H |", "|---|---:|---:|---:|---:|"]
    runs = {name: of(study, f"base-to-new/{name}") for name in CONTEXTS}
    first = next(iter(runs.values()))[0]
    zero = (first["zero_shot_base"], first["zero_shot_new"])
    lines.append(f"| zero-shot | {points([zero[0]])} | {points([zero[1]])} | {both([zero])} |")
    for name, found in runs.items():
        pairs = [(run["base"], run["new"]) for run in found]
        cells = [points([run[half] for run in found]) for half in ("base", "new")]
        lines.append(f"| {name} | {' | '.join(cells)} | {both(pairs)} |")
    lines += ["", f"| | {' | '.join(f'{a} to {b}' for a, b in PAIRS)} |", "|---|---:|---:|"]
    keys = [f"{source} to {target}" for source, target in PAIRS]
    for name, field in (("always the commonest label", "majority"), ("zero-shot", "zero_shot")):
        cells = [points([of(study, f"{key}/DAPL")[0][field]]) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name in ADAPTED:
        cells = [points([run["accuracy"] for run in of(study, f"{key}/{name}")]) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, field in (("sure pseudo-labels", "kept"), ("of these right", "right")):
        cells = [points([of(study, f"{key}/DAPL")[0][field]]) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of(study: Study, prefix: str) -> list[Run]:
    """The runs of all seeds. Raises ValueError for a study that is not finished."""
    if missing := [seed for seed in SEEDS if f"{prefix}/{seed}" not in study.runs]:
        raise ValueError(f"{prefix} has no runs yet of the seeds {missing}: run the study to its end")
    return [study.runs[f"{prefix}/{seed}"] for seed in SEEDS]


def both(pairs: Sequence[tuple[float, float]]) -> str:
    found = harmonic_means(pairs)
    return f"{100 * found['harmonic_mean_of_means']:.1f} | {100 * found['mean_of_harmonic_means']:.1f}"


def points(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(shares):.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * statistics.stdev(shares):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/clip.json"))
    parser.add_argument("--tables", type=Path, help="print the tables of such a file, and run nothing")
    arguments = parser.parse_args()
    if arguments.tables is not None:
        print(tables(Study(arguments.tables)))
    else:
        conduct(Study(arguments.output))


if __name__ == "__main__":
    main()
