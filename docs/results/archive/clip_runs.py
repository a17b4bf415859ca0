"""Archive of a published figure, not maintained: it made docs/results/clip.json at commit 3cfa151.

What a study file cannot say: a grid of linear probes, base-to-new, and domain adaptation. At that commit:

    python -m studies.dual_encoder --output docs/results/clip.json      # several processes may share it

Probes: rates and decays, or C of the optimum (CLIP's and CoOp's own), searched for on the rows of studies/clip-few-shot.yaml.
Base-to-new: subcategories of emoji in three styles, 16 rows of each base class (Zhou et al., CVPR 2022: CoCoOp).
CoCoOp with as many images as CoOp, which takes ten times as long: at 16 rows of each class, and in base-to-new.
Adaptation: google's emoji have labels, twitter's none; then twitter's have, fluent's none (Ge et al., 2022: DAPL). As in its
paper the images without labels are those that are tested on. Rates are chosen by validation rows that have labels: those of
base classes, and those of the source domain.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import softprompt as sp
from docs.results.archive.runs import Run, Study
from softprompt.backbones.base import Backbone
from softprompt.data import few_shot, load_rows, subsample
from softprompt.protocols import (
    base_and_new,
    base_to_new_runs,
    few_shot_splits,
    probe_grid,
    probe_search,
)

SEEDS = (0, 1, 2)
STYLES = ("google", "twitter", "fluent")
PAIRS = (("google", "twitter"), ("twitter", "fluent"))
STEPS = 40
RATES = (0.002, 0.01)
SPLITS = ("train", "validation")
THRESHOLD = 0.5  # of the released code
SURE = {f"DAPL, threshold {threshold}": threshold for threshold in (0.7, 0.9)}  # what DAPL is also run with
SHOTS = 16
PROBED = (1, 2, 4, 8, 16)
PROBE, OPTIMAL = "linear probe", "linear probe, C searched for"

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


@dataclass(frozen=True)
class Context:
    """A method, its batch of images, and the rates of which validation rows choose one."""

    method: sp.Method
    batch_size: int = 10
    rates: Sequence[float] = RATES


CONTEXTS: Mapping[str, Context] = {
    "CoOp": Context(sp.CoOp(length=4)),
    "CoCoOp": Context(
        sp.CoCoOp(length=4), batch_size=3, rates=RATES[:1]
    ),  # each image brings texts of its own
    "CoCoOp, as many images": Context(sp.CoCoOp(length=4)),
}
MANY = "CoCoOp, as many images"
FEW_STEPS, FEW_BATCH = 60, 9  # of CoOp in studies/clip-few-shot.yaml
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


def probe_run(shots: int, seed: int, optimum: bool = False) -> Run:
    """The best of many heads by the validation rows, and what it says of the test rows."""
    train = rows("google", "train")
    [split] = few_shot_splits(train, PLAIN, [shots], [seed])
    drawn, validation = [train[i] for i in split.train], rows("google", "validation", 60)
    if optimum:
        best = probe_search(backbone(), HEAD, drawn, validation).best
    else:
        recipe = sp.Recipe(steps=100, batch_size=9, evaluate_every=20, seed=seed)
        best = probe_grid(backbone(), HEAD, drawn, validation, recipe=recipe).best
    metrics = best.evaluate(rows("google", "test", 200))
    return {
        "accuracy": metrics["accuracy"],
        "rows": metrics["rows"],
        "validation": best.metrics["validation"]["accuracy"],
    } | ({"c": best.recipe["c"]} if optimum else {})


def few_rows_majority() -> Run:
    """Always the commonest label of the test rows."""
    test = rows("google", "test", 200)
    return {"accuracy": share_of_commonest(PLAIN, test), "rows": len(test)}


def halves_majority() -> Run:
    """Always the commonest label of a half's test rows, and how many classes there are to guess among."""
    found: Run = {}
    for half, labels in zip(("base", "new"), base_and_new(HALVES.labels), strict=True):
        own = [row for row in in_halves("test") if row["subcategory"] in labels]
        found[half] = share_of_commonest(HALVES, own)
        found |= {f"{half}_rows": len(own), f"{half}_classes": len(labels)}
    return found


def share_of_commonest(task: sp.ImageTextClassification, test: Sequence[Mapping[str, Any]]) -> float:
    labels = Counter(map(task.read_label, test))
    return max(labels.values()) / labels.total()


def in_halves(split: str) -> list[dict[str, Any]]:
    """Of all styles those of the subcategories that are told apart."""
    return [row for style in STYLES for row in rows(style, split) if row["subcategory"] in SUBCATEGORIES]


def few_shot_fit(context: Context, rate: float, seed: int) -> sp.TunedPrompt:
    """16 rows of each class, trained on as a line of studies/clip-few-shot.yaml."""
    train = rows("google", "train")
    [split] = few_shot_splits(train, PLAIN, [SHOTS], [seed])
    how = sp.Recipe(steps=FEW_STEPS, batch_size=FEW_BATCH, evaluate_every=20, learning_rate=rate, seed=seed)
    drawn, validation = [train[i] for i in split.train], rows("google", "validation", 60)
    return sp.fit(backbone(), PLAIN, context.method, drawn, validation, recipe=how, progress=False)


@cache
def few_shot_rate(name: str) -> float:
    """The rate that is best on the validation rows, by a run with another seed than the final ones."""
    context = CONTEXTS[name]
    found = {r: few_shot_fit(context, r, 1000).metrics["validation"]["accuracy"] for r in context.rates}
    return max(found, key=lambda rate: found[rate])


def few_shot_run(name: str, seed: int) -> Run:
    rate = few_shot_rate(name)
    metrics = few_shot_fit(CONTEXTS[name], rate, seed).evaluate(rows("google", "test", 200))
    return {"accuracy": metrics["accuracy"], "rows": metrics["rows"], "learning_rate": rate}


@cache
def rate_of(name: str) -> float:
    """The rate that is best on validation rows of the base classes, by a run with another seed than the final ones."""
    context = CONTEXTS[name]
    if len(context.rates) == 1:
        return context.rates[0]
    task = HALVES.with_labels(base_and_new(HALVES.labels)[0])
    base = {split: [row for row in in_halves(split) if row["subcategory"] in task.labels] for split in SPLITS}
    drawn = few_shot(base["train"], SHOTS, "subcategory", 1000)
    found = {}
    for rate in context.rates:
        how = sp.Recipe(steps=STEPS, batch_size=context.batch_size, seed=1000, learning_rate=rate)
        tuned = sp.fit(backbone(), task, context.method, drawn, recipe=how, progress=False)
        found[rate] = tuned.evaluate(base["validation"])["accuracy"]
    return max(found, key=lambda rate: found[rate])


def halves_run(name: str, seed: int) -> Run:
    """Train on the base classes with the chosen rate, read the test rows of both halves once."""
    context = CONTEXTS[name]
    found = base_to_new_runs(
        backbone(),
        HALVES,
        context.method,
        in_halves("train"),
        in_halves("test"),
        shots=SHOTS,
        seeds=(seed,),
        recipe=sp.Recipe(steps=STEPS, batch_size=context.batch_size, learning_rate=rate_of(name)),
    )
    return dict(found.records[0])


def adapted_run(name: str, source: str, target: str, seed: int, threshold: float = THRESHOLD) -> Run:
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
    recipes = [
        sp.Recipe(steps=STEPS, batch_size=10, seed=seed, learning_rate=rate, evaluate_every=STEPS // 2)
        for rate in RATES
    ]
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
            threshold=threshold,
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
    run_majorities(study)
    for seed in SEEDS:
        for shots in PROBED:
            study.run(f"{PROBE}/{shots}/{seed}", probe_run, shots, seed)
            study.run(f"{OPTIMAL}/{shots}/{seed}", probe_run, shots, seed, True)
        study.run(f"few rows/{MANY}/{seed}", few_shot_run, MANY, seed)
    for seed in SEEDS:
        for name in CONTEXTS:
            study.run(f"base-to-new/{name}/{seed}", halves_run, name, seed)
        for source, target in PAIRS:
            pair = f"{source} to {target}"
            for name in ADAPTED:
                study.run(f"{pair}/{name}/{seed}", adapted_run, name, source, target, seed)
            for name, threshold in SURE.items():
                study.run(f"{pair}/{name}/{seed}", adapted_run, "DAPL", source, target, seed, threshold)


def run_majorities(study: Study) -> None:
    """What counting labels says."""
    study.run("few rows/majority", few_rows_majority)
    study.run("base-to-new/majority", halves_majority)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/clip.json"))
    conduct(Study(parser.parse_args().output))


if __name__ == "__main__":
    main()
