"""Archive of a published figure, not maintained: it made docs/results/language-methods.json at commit 3cfa151.

The encoder's results, and the learning rates of both backbones. At that commit:

    python -m studies.language --output runs/language.json      # several processes may work on one file

Parts, in order: the learning rates (validation rows only), the table of methods, with its prompts carried to other
domains, DePT from few rows, ensembles, prompt length, start and steps, and what a training costs. A run that is in the file
is not run again. The decoder's table of methods is studies/decoder-methods.yaml.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import softprompt as sp
from docs.results.archive import foundation_runs
from docs.results.archive.runs import Run, Study
from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.data import Row, load_rows, subsample
from softprompt.prompts.dept import OFFSET_RATE
from softprompt.studies.environment import peak_memory, reset_peak
from softprompt.tasks.base import Task

SEEDS = (0, 1, 2)
TRAIN, VALIDATION, TEST = 4000, 200, 300  # rows
DECODER, ENCODER = "smollm2-135m-instruct", "minilm-l6"
BACKBONES = (ENCODER, DECODER)
STEPS = {DECODER: 100, ENCODER: 200}
BATCH = 8
FACTORS = (0.3, 1.0, 3.0)  # of a method's default learning rate
ABROAD = ("multiemo-products", "multiemo-medicine", "multiemo-reviews")
HOME = "multiemo-hotels"
INITS: tuple[Literal["uniform", "vocab", "labels"], ...] = ("uniform", "vocab", "labels")

MOOD = {"negative": " negative", "positive": " positive", "neutral": " neutral", "ambivalent": " mixed"}
TYPES: tuple[str, ...] = (
    "Entity",
    "Humans",
    "Date",
    "Quantity",
    "Event",
    "Location",
    "Facility",
    "Organization",
)
TYPES += ("Abbreviation", "Money", "Other", "Law")  # without the two rows of "Time"


@dataclass(frozen=True)
class DataSet:
    """How its rows are read by a decoder, which answers in words, and by an encoder, whose head answers."""

    template: str
    plain: str
    labels: Mapping[str, str]
    words: int = 50


SETS = {
    "multiemo-hotels": DataSet("Review: {text}\nSentiment:", "{text}", MOOD),
    "vitaminc": DataSet(
        "Evidence: {evidence}\nClaim: {claim}\nVerdict:",
        "{claim}[SEP]{evidence}",
        {"True": " true", "False": " false", "Neither": " unclear"},
        words=45,
    ),
    "question-types": DataSet("{text}\nType of the answer:", "{text}", {t: f" {t.lower()}" for t in TYPES}),
}

TRAINED: Mapping[str, Mapping[str, sp.Method]] = {
    DECODER: {
        "linear-probe": sp.LinearProbe(),
        "prompt-tuning": sp.PromptTuning(),
        "p-tuning": sp.PTuning(),
        "dept": sp.DePT(),
        "prefix-tuning": sp.PrefixTuning(),
        "p-tuning-v2": sp.PTuningV2(),
        "adapter": sp.Adapter(),
        "lora": sp.LoRA(),
    },
    ENCODER: {
        "linear-probe": sp.LinearProbe(),
        "mlp-probe": sp.MLPProbe(),
        "prompt-tuning": sp.PromptTuning(),
        "p-tuning": sp.PTuning(),
        "dept": sp.DePT(),
        "prefix-tuning": sp.PrefixTuning(),
        "p-tuning-v2": sp.PTuningV2(),
        "bitfit": sp.BitFit(),
        "adapter": sp.Adapter(),
        "lora": sp.LoRA(),
        "full-tuning": sp.FullTuning(),
    },
}
CARRIED = ("prompt-tuning", "dept", "p-tuning-v2", "lora", "full-tuning")  # to other domains


@cache
def backbone_of(name: str) -> Backbone:
    return sp.load_backbone(name)


def task_of(backbone: str, method: str, data: str) -> Task:
    """Words where the backbone has them, a head where it has none or the method is one."""
    entry = SETS[data if data in SETS else HOME]
    if backbone == ENCODER:
        return sp.SequenceClassification(entry.plain, labels=list(entry.labels))
    if method == "linear-probe":
        return sp.SequenceClassification(entry.template, labels=list(entry.labels))
    return sp.TextClassification(entry.template, labels=dict(entry.labels))


@cache
def rows(name: str, split: str) -> list[dict[str, Any]]:
    """The rows of a split that are used, the same in every run; long texts cut to their first words.

    Of the sets that docs/results/foundation.md has read test rows of, others.
    """
    entry = SETS[name if name in SETS else HOME]
    found = [row for row in load_rows(name, split) if row["label"] in entry.labels]
    if split == "test" and name in foundation_runs.SETTINGS:
        for count in (foundation_runs.READ_BEFORE, foundation_runs.TEST):
            read = {id(row) for row in subsample(found, count, seed=0)}
            found = [row for row in found if id(row) not in read]
    limit = {"train": TRAIN, "validation": VALIDATION, "test": TEST}[split]
    # By label: a plain draw of 300 had 60 % of the commonest label of VitaminC, which has 50 %.
    stratify = "label" if split == "test" else None
    found = subsample(found, min(limit, len(found)), seed=0, stratify=stratify)
    return [{c: " ".join(str(v).split()[: entry.words]) for c, v in row.items()} for row in found]


def scores(metrics: Mapping[str, Any]) -> Run:
    """What is kept of an evaluation."""
    return {key: metrics[key] for key in ("accuracy", "macro_f1", "rows")}


def train(
    backbone: str,
    method: sp.Method,
    data: str,
    *,
    seed: int,
    task: Task | None = None,
    few: Sequence[Row] | None = None,
    judged: bool = False,
    **recipe: Any,
) -> tuple[sp.TunedPrompt, Run]:
    """A tuned prompt and what is known of its training.

    few     rows to train on instead of the set's
    judged  score the prompt on the validation rows when it is done, which nothing else is chosen on
    Seconds are the processor's: other work on the machine does not count.
    """
    gc.collect()
    own = backbone_of(backbone)
    settings = {"steps": STEPS[backbone], "batch_size": BATCH, "seed": seed} | recipe
    settings.setdefault("evaluate_every", settings["steps"])
    reset_peak(own.device)
    before, started = peak_memory(own.device)["host"], time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sp.SoftpromptWarning)
        tuned = sp.fit(
            own,
            task or task_of(backbone, method.name, data),
            method,
            few or rows(data, "train"),
            rows(data, "validation") if judged else None,
            progress=False,
            **settings,
        )
    return tuned, {
        **({"validation": scores(tuned.metrics["validation"])} if judged else {}),
        "trained_parameters": tuned.recipe["trained_parameters"],
        "learning_rate": tuned.recipe["learning_rate"],
        "cpu_seconds_of_training": round(time.process_time() - started, 1),
        "peak_extra_mib": round((peak_memory(own.device)["host"] - before) / 2**20),
    }


def chosen_rate(study: Study, backbone: str, method: str) -> float | None:
    """The rate that was best on validation rows of the home data; none where none was tried, or the default was best."""
    found: dict[float, float] = {}
    for factor in FACTORS:
        if run := study.runs.get(f"{backbone}/rate/{method}/{factor}"):
            found[factor] = run["validation"]["accuracy"]
    if not found:
        return None
    best = max(found, key=lambda factor: (found[factor], factor == 1.0))
    rate: float = study.runs[f"{backbone}/rate/{method}/{best}"]["learning_rate"]
    return rate


def rate_run(backbone: str, method: sp.Method, factor: float) -> Run:
    spec = backbone_of(backbone).spec
    head_only = type(method).head_only
    rate = factor * (method.head_learning_rate(spec) if head_only else method.learning_rate(spec))
    recipe = {"head_learning_rate": rate} if head_only else {}
    result = train(backbone, method, HOME, seed=0, judged=True, learning_rate=rate, **recipe)[1]
    return result | {"learning_rate": rate}


def final_run(study: Study, backbone: str, name: str, method: sp.Method, data: str, seed: int) -> Run:
    """Train with the chosen rate, read the test rows once, at home and, from the home data, abroad."""
    recipe: dict[str, Any] = {}
    if rate := chosen_rate(study, backbone, name):
        recipe = {"learning_rate": rate} | ({"head_learning_rate": rate} if type(method).head_only else {})
    tuned, result = train(backbone, method, data, seed=seed, **recipe)
    result["test"] = scores(tuned.evaluate(rows(data, "test")))
    if data == HOME and name in CARRIED:
        result["abroad"] = {other: scores(tuned.evaluate(rows(other, "test"))) for other in ABROAD}
    return result


def majority(data: str) -> Run:
    """Always the commonest label of these very rows."""
    labels = Counter(row["label"] for row in rows(data, "test"))
    return {"test": {"accuracy": max(labels.values()) / labels.total(), "rows": labels.total()}}


def ensemble_run(backbone: str, data: str, first_seed: int, members: int = 5) -> Run:
    """Five prompts, each with its own seed, in one pass."""
    method = sp.PromptTuning()
    prompts = [
        train(backbone, method, data, seed=seed)[0] for seed in range(first_seed, first_seed + members)
    ]
    found = sp.PromptEnsemble(prompts).evaluate(rows(data, "test"))
    return {
        "rules": {rule: metrics["accuracy"] for rule, metrics in found.ensemble.items()},
        "members": [metrics["accuracy"] for metrics in found.members],
        "mean": found.mean["accuracy"],
    }


def few_rows(data: str, per_class: int, seed: int) -> list[dict[str, Any]]:
    """The first `per_class` rows of each label in an order of their own."""
    kept: Counter[str] = Counter()
    found = []
    for row in subsample(rows(data, "train"), len(rows(data, "train")), seed=seed):
        if kept[row["label"]] < per_class:
            kept[row["label"]] += 1
            found.append(row)
    return found


def few_shot_run(backbone: str, per_class: int, seed: int, source: Path | None) -> Run:
    """DePT on few rows of product reviews, from its own start or from a prompt of hotel reviews."""
    method = sp.DePT() if source is None else sp.DePT(init="prompt", init_prompt=source)
    target = ABROAD[0]
    task = task_of(backbone, method.name, target)
    few = few_rows(target, per_class, seed)
    tuned, result = train(backbone, method, target, seed=seed, task=task, few=few, steps=60)
    return result | {"test": scores(tuned.evaluate(rows(target, "test")))}


def cost_run(backbone: str, name: str) -> Run:
    """What a training of hotel reviews costs, as the first thing of its process."""
    backbone_of(backbone), rows(HOME, "train")  # are loaded before it begins
    return train(backbone, TRAINED[backbone][name], HOME, seed=0)[1]


def in_its_own_process(backbone: str, name: str) -> Run:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(cost_run, backbone, name).result()


def run_costs(study: Study, backbone: str) -> None:
    """All on one machine and beside the same other work, or the table's times cannot be compared."""
    for name in TRAINED[backbone]:
        study.run(f"{backbone}/cost/{name}", in_its_own_process, backbone, name)


def run_rates(study: Study, backbone: str) -> None:
    for name, method in TRAINED[backbone].items():
        for factor in FACTORS:
            study.run(f"{backbone}/rate/{name}/{factor}", rate_run, backbone, method, factor)


def run_majorities(study: Study) -> None:
    for data in (*SETS, *ABROAD):
        study.run(f"{data}/majority", majority, data)


def run_table(study: Study, backbone: str) -> None:
    run_majorities(study)
    for seed in SEEDS:
        for data in SETS:
            for name, method in TRAINED[backbone].items():
                key = f"{backbone}/{data}/{name}/{seed}"
                study.run(key, final_run, study, backbone, name, method, data, seed)


def run_ensembles(study: Study, backbone: str) -> None:
    for group in range(3):
        for data in (HOME, "question-types"):
            study.run(f"{backbone}/{data}/ensemble/{group}", ensemble_run, backbone, data, 10 + 5 * group)


def run_ablations(study: Study, backbone: str, seeds: Sequence[int] = SEEDS) -> None:
    """Length, start and steps of Prompt Tuning, and one rate in the place of DePT's two; validation rows only."""
    rate = sp.DePT().learning_rate(backbone_of(backbone).spec)
    small = OFFSET_RATE * rate

    @cache  # what one run is varied from stands in the table under its length, its start and its steps
    def result(method: sp.Method, seed: int, steps: int, learning_rate: float | None) -> Run:
        recipe: dict[str, Any] = {"steps": steps, "learning_rate": learning_rate}
        return train(backbone, method, HOME, seed=seed, judged=True, **recipe)[1]

    def go(
        key: str, method: sp.Method, seed: int, steps: int = STEPS[backbone], rate: float | None = None
    ) -> None:
        study.run(f"{backbone}/ablation/{key}/{seed}", result, method, seed, steps, rate)

    for seed in seeds:
        for length in (1, 5, 20, 50, 100):
            go(f"length/{length}", sp.PromptTuning(length=length), seed)
        for init in INITS:
            # "auto" takes the class labels where there are some.
            go(f"init/{init}", sp.PromptTuning(init="auto" if init == "labels" else init), seed)
        for factor in (0.3, 1, 3):
            steps = round(factor * STEPS[backbone])
            go(f"steps/{steps}", sp.PromptTuning(), seed, steps)
        go("dept/two rates", sp.DePT(), seed)
        go("dept/one rate", sp.DePT(offset_learning_rate=rate), seed)
        go("dept/one small rate", sp.DePT(offset_learning_rate=small), seed, rate=small)


def run_few_shot(study: Study, backbone: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            keys = {
                (k, kind): f"{backbone}/few-shot/{k}/{kind}/{seed}"
                for k in (4, 16, 32)
                for kind in ("own", "source")
            }
            if all(key in study.runs for key in keys.values()):
                continue
            source = train(backbone, sp.DePT(), HOME, seed=seed)[0].save(Path(folder) / f"source-{seed}")
            for (k, kind), key in keys.items():
                study.run(key, few_shot_run, backbone, k, seed, source if kind == "source" else None)


PARTS: Mapping[str, Callable[[Study, str], None]] = {
    "table": run_table,
    "few-shot": run_few_shot,
    "ensembles": run_ensembles,
    "ablations": run_ablations,
    "costs": run_costs,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/language.json"))
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=list(BACKBONES))
    parts = ["rates", *PARTS]
    parser.add_argument("--parts", nargs="*", default=parts, choices=parts)
    arguments = parser.parse_args()
    study = Study(arguments.output)
    if "about" not in study.runs:
        study.keep("about", {key: str(value) for key, value in store.library_versions().items()})
    for backbone in arguments.backbones:
        if "rates" in arguments.parts:
            run_rates(study, backbone)
    for part in PARTS:
        if part in arguments.parts and ENCODER in arguments.backbones:
            PARTS[part](study, ENCODER)


if __name__ == "__main__":
    main()
