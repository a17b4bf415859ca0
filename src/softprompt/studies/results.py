"""Results of a study: scores by compared option, condition and seed."""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from softprompt.records.run_folders import Outcome
from softprompt.studies.config import Study
from softprompt.studies.ensembles import members_of, recorded
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Plan, plan
from softprompt.studies.runs import PlannedRun
from softprompt.studies.statistics import Summary, summarize_scores

COSTS = {
    "trained_parameters": "trained parameters",
    "seconds": "seconds in steps",
    "evaluation": "seconds in evaluations",
    "wall_seconds": "seconds in all",
    "cpu_seconds": "CPU seconds",
    "host": "peak memory of the process, MiB",
    "memory": "peak memory, MiB",
    "device": "peak GPU memory of the process, MiB",
    "gpu_memory": "peak GPU memory, MiB",
}
_PEAKS = {"memory": "host", "gpu_memory": "device"}  # a run's own: from where its process stood to that peak


Average = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Result:
    """A run that has ended. `line` is the compared option, `condition` the rest of its cell in words.

    losses  of each step, for a final run without evaluations during training
    """

    run: PlannedRun
    outcome: Outcome
    line: str
    condition: str
    losses: Sequence[float] = ()

    @property
    def metric(self) -> str:
        return str(self.outcome.facts["main_metric"])

    def score(self, data: str) -> float | None:
        """The main metric on a data set: validation, test or a domain's name."""
        value = self.outcome.facts.get("metrics", {}).get(data, {}).get(self.metric)
        return None if value is None else float(value)

    def row_count(self, data: str) -> int | None:
        """The number of rows of a data set; None: the run does not say it."""
        facts = self.outcome.facts
        metrics, rows = facts.get("metrics", {}).get(data, {}), facts.get("rows", {}).get(data, {})
        return metrics.get("rows", rows.get("count"))

    def cost(self, name: str) -> float | None:
        """One of COSTS."""
        facts = self.outcome.facts
        peaks = facts.get("peak_memory", {})
        if name in ("host", "device"):
            value = peaks.get(name)
            return None if value is None else value / 2**20
        if name in _PEAKS:
            peak, before = peaks.get(_PEAKS[name]), peaks.get(f"{_PEAKS[name]}_before")
            return None if peak is None or before is None else (peak - before) / 2**20
        value = (facts.get("times", {}) if name == "evaluation" else facts).get(name)
        return None if value is None else float(value)


@dataclass(frozen=True)
class TimeSpent:
    """Seconds of the processes that made runs: in total, in training steps, and in evaluations on validation and test rows.

    For a run that was killed and resumed, the seconds of the process that finished it.
    """

    total: float
    steps: float
    evaluation: float

    @property
    def share(self) -> float | None:
        """The share of training steps in the non-evaluation time; None if nothing was trained."""
        trained = self.total - self.evaluation
        return self.steps / trained if self.steps and trained > 0 else None


@dataclass(frozen=True)
class StudyResults:
    """The data of all tables and plots.

    data  the data sets of the final scores: "test" and the domains, or "validation" if there is no test
    ensembles  line and condition in words, and the scores of the line's prompts as an ensemble
    """

    study: Study
    plan: Plan
    finals: Sequence[Result]
    searched: Sequence[Result]
    failed: Sequence[Result]
    missing: int
    data: Sequence[str]
    ensembles: Sequence[tuple[str, Mapping[str, Any]]] = ()

    @property
    def lines(self) -> list[str]:
        return list(dict.fromkeys(result.line for result in self.finals))

    @property
    def conditions(self) -> list[str]:
        return list(dict.fromkeys(result.condition for result in self.finals))

    def scores(self, line: str, condition: str, data: str) -> dict[int, float]:
        """Scores by seed."""
        found = ((r.run.seed, r.score(data)) for r in self.of(line, condition))
        return {seed: score for seed, score in found if score is not None}

    def of(self, line: str, condition: str | None = None) -> list[Result]:
        return [r for r in self.finals if r.line == line and condition in (None, r.condition)]

    def majority(self, condition: str, data: str) -> float | None:
        """The accuracy of always giving the commonest label, if the metric is accuracy."""
        for result in self.finals:
            metrics = result.outcome.facts.get("metrics", {}).get(data, {})
            if (
                result.condition == condition
                and result.metric == "accuracy"
                and "majority_accuracy" in metrics
            ):
                return float(metrics["majority_accuracy"])
        return None

    def metric(self, condition: str) -> str:
        return next(result.metric for result in self.finals if result.condition == condition)

    def trains(self, line: str) -> bool:
        """Whether any of its runs made an optimizer step."""
        return any(result.outcome.facts.get("steps_made") for result in self.of(line))

    def problem(self, condition: str) -> str:
        """The task and its training rows, as a key."""
        values = next(result.run.values for result in self.finals if result.condition == condition)
        return json.dumps([values["task"], values["data"]["train"]], sort_keys=True)

    @property
    def metrics(self) -> list[str]:
        """The tasks' main metrics: one, unless the study has tasks of several kinds."""
        return list(dict.fromkeys(result.metric for result in self.finals))

    def cost(
        self, line: str, name: str, average: Average = statistics.fmean, condition: str | None = None
    ) -> float | None:
        """The mean over a line's runs, or another average of them; condition: of those under it alone."""
        found = [value for result in self.of(line, condition) if (value := result.cost(name)) is not None]
        return average(found) if found else None

    def time(self) -> TimeSpent:
        """Seconds over all runs that ended and recorded their times, including those that chose settings."""
        ended = {r.run.id: r.outcome.facts for r in (*self.searched, *self.finals)}.values()
        told = [facts for facts in ended if facts.get("times")]
        return TimeSpent(
            sum(facts["wall_seconds"] for facts in told),
            sum(facts["times"]["steps"] for facts in told),
            sum(facts["times"]["evaluation"] for facts in told),
        )

    def mean(self, line: str, metric: str | None = None) -> float | None:
        """The mean over conditions and data sets of the means over seeds; None where the line lacks one that others have.

        metric: over the conditions with this metric alone. Without it, None where there are several metrics: their mean would
        mean nothing.
        """
        if metric is None and len(self.metrics) > 1:
            return None
        found = [
            list(self.scores(line, condition, data).values())
            for condition in self.conditions
            if metric in (None, self.metric(condition))
            for data in self.data
            if any(self.scores(other, condition, data) for other in self.lines)
        ]
        return (
            statistics.fmean(statistics.fmean(scores) for scores in found) if all(found) and found else None
        )

    def row_count(self, condition: str, data: str) -> int | None:
        """The number of rows of a data set, the least if runs differ; None: the runs do not say it."""
        found = [
            count
            for result in self.finals
            if result.condition == condition and (count := result.row_count(data))
        ]
        return min(found) if found else None

    def summary(self, line: str, condition: str, data: str) -> Summary | None:
        """The scores over seeds with their interval; None: there are none."""
        scores = list(self.scores(line, condition, data).values())
        rows = self.row_count(condition, data) if self.metric(condition) == "accuracy" else None
        return summarize_scores(scores, rows) if scores else None


def read_results(folder: StudyFolder) -> StudyResults:
    """The results so far. Raises FileNotFoundError for a folder without a study, ValueError for one without a result."""
    study = folder.study()
    found = plan(study, folder.outcome)
    ended = [
        Result(
            run, outcome, line_of(study, run), condition_of(study, run.cell), _losses(folder, run.id, outcome)
        )
        for run in found.runs
        if (outcome := folder.outcome(run.id)) is not None
    ]
    finals = [r for r in ended if r.run.stage == "final" and r.outcome.status == "finished"]
    if not finals:
        raise ValueError(
            f"{folder.path} has no final run that has finished, of {len(found.runs)} runs and {found.later} more: "
            "run softprompt compare to its end"
        )
    names = dict.fromkeys(name for r in finals for name in r.outcome.facts["metrics"])
    judged = [name for name in names if name not in ("train", "validation")] or ["validation"]
    return StudyResults(
        study=study,
        plan=found,
        finals=finals,
        searched=[r for r in ended if r.run.stage == "search"],
        failed=[r for r in ended if r.outcome.status in ("failed", "diverged")],
        missing=len(found.runs) - len(ended) + found.later,
        data=judged,
        ensembles=[
            (", ".join(filter(None, (condition_of(study, runs[0].cell), line_of(study, runs[0])))), facts)
            for runs in (members_of(found, folder) if study.ensembles else ())
            if (facts := recorded(runs, folder)) is not None
        ],
    )


def _losses(folder: StudyFolder, run_id: str, outcome: Outcome) -> list[float]:
    if outcome.facts.get("stage") != "final" or outcome.facts.get("evaluations"):
        return []
    return [record["loss"] for record in folder.history(run_id) if record["loss"] is not None]


def line_of(study: Study, run: PlannedRun) -> str:
    """The parts of a run that are compared."""
    return run.cell.get(study.compare, study.title)


def pareto_front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the (cost, score) points on the Pareto front: no other is as cheap and better, or cheaper and as good."""
    return {
        name
        for name, (cost, score) in points.items()
        if not any(
            (c <= cost and s > score) or (c < cost and s >= score)
            for other, (c, s) in points.items()
            if other != name
        )
    }


def confusion(results: Sequence[Result], data: str) -> dict[str, Counter[str]]:
    """Counts summed over runs: true label -> given label; empty for a task without."""
    total: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        for gold, row in result.outcome.facts.get("metrics", {}).get(data, {}).get("confusion", {}).items():
            total[gold].update(row)
    return dict(total)


def accuracy_matrix(results: Sequence[Result], data: str) -> list[list[float]]:
    """The mean over runs of their metric "accuracy_matrix"; empty if none has one, or they learned different numbers of tasks.

    Row t: the accuracy on each of the tasks 0 to t after task t was learned.
    """
    found = [r.outcome.facts.get("metrics", {}).get(data, {}).get("accuracy_matrix") or [] for r in results]
    if len({len(matrix) for matrix in found}) != 1:
        return []
    return [
        [statistics.fmean(values) for values in zip(*rows, strict=True)] for rows in zip(*found, strict=True)
    ]


def condition_of(study: Study, cell: Mapping[str, str], *others: str) -> str:
    """A cell in words, without what is compared and without these other axes."""
    parts = [
        label if any(c.isalpha() for c in label) else f"{axis.split('.')[-1]} {label}"
        for axis, label in cell.items()
        if axis not in (study.compare, *others)
    ]
    return ", ".join(parts)


def chosen_rows(results: StudyResults) -> list[dict[str, Any]]:
    """Each setting that was tried: cell, settings, mean validation score, runs, whether it was chosen."""
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results.searched:
        groups[result.line, result.condition, repr(dict(result.run.chosen))].append(result)
    taken = {(r.line, r.condition, repr(dict(r.run.chosen))) for r in results.finals if r.run.chosen}
    rows = []
    for key, found in groups.items():
        scores = [
            v for r in found if (v := r.outcome.validation) is not None and r.outcome.status == "finished"
        ]
        rows.append(
            {
                "line": key[0],
                "condition": key[1],
                "settings": dict(found[0].run.chosen),
                "validation": statistics.fmean(scores) if len(scores) == len(found) else None,
                "status": ", ".join(sorted({r.outcome.status for r in found})),
                "runs": len(found),
                "chosen": key in taken,
            }
        )
    return rows
