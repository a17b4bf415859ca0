"""A study's report: one HTML page that needs nothing else, and its tables and plots as files."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from softprompt import store
from softprompt.files import write_bytes, write_text
from softprompt.studies.doubts import doubts
from softprompt.studies.drawing import Plot
from softprompt.studies.figures import plots
from softprompt.studies.folder import StudyFolder
from softprompt.studies.page_parts import STYLE, heat_map, picture, table
from softprompt.studies.results import (
    StudyResults,
    TimeSpent,
    accuracy_matrix,
    confusion,
    read_results,
)
from softprompt.studies.tables import (
    as_csv,
    as_latex,
    as_markdown,
    choice_table,
    comparison_table,
    confusion_table,
    cost_table,
    ensemble_table,
    half_table,
    run_table,
    score_table,
    task_table,
)


def write_report(folder: StudyFolder, output: Path) -> list[Path]:
    """Write index.html, runs.csv, confusions.csv, each plot as .svg and .png and each table as .csv, .md and .tex.

    Tables are scores, comparisons (the paired test), costs (means, by condition), costs-median, choices (settings on
    validation), tasks (classes that came in tasks), halves (base and new classes) and ensembles: those that the study has
    something for.
    Returns what was written into `output`, the page first. Raises what `read_results` does, and OSError.
    """
    results = read_results(folder)
    output.mkdir(parents=True, exist_ok=True)
    pictures = plots(results)
    files = {"index.html": page(results, pictures), "runs.csv": as_csv(run_table(results))}
    confusions = confusion_table(results)
    if confusions[1]:
        files["confusions.csv"] = as_csv(confusions)
    tables = {
        "scores": score_table(results),
        "comparisons": comparison_table(results),
        "costs": cost_table(results),
        "costs-median": cost_table(results, statistics.median),
        "choices": choice_table(results),
        "tasks": task_table(results),
        "halves": half_table(results),
        "ensembles": ensemble_table(results),
    }
    for name, content in tables.items():
        if not content[1]:
            continue
        files |= {
            f"{name}.csv": as_csv(content),
            f"{name}.md": as_markdown(content),
            f"{name}.tex": as_latex(content),
        }
    files |= {f"{plot.name}.svg": plot.file() for plot in pictures}
    for name, text in files.items():
        write_text(output / name, text)
    for plot in pictures:
        write_bytes(output / f"{plot.name}.png", plot.png())
    return [output / name for name in (*files, *(f"{plot.name}.png" for plot in pictures))]


def page(results: StudyResults, pictures: Sequence[Plot]) -> str:
    """The whole page. Every text that comes from a config, a label or an error is escaped."""
    title = escape(results.study.title)
    parts = [
        _facts(results),
        _doubts(results),
        _scores(results),
        _comparisons(results),
        _costs(results),
        *(picture(plot) for plot in pictures),
        _confusions(results),
        _halves(results),
        _ensembles(results),
        _accuracy_matrices(results),
        _chosen(results),
        _failed(results),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{chr(10).join(part for part in parts if part)}
</main>
</body>
</html>
"""


def _facts(results: StudyResults) -> str:
    made = [result.outcome.facts["environment"] for result in results.finals]

    def kinds(name: str) -> str:
        return ", ".join(sorted({str(environment.get(name)) for environment in made}))

    # Results of older versions hold the path of a local backbone.
    backbones = sorted({store.shown_name(environment.get("backbone", "None")) for environment in made})
    seeds = sorted({result.run.seed for result in results.finals})
    versions = {
        name: " and ".join(sorted({str(environment["versions"].get(name)) for environment in made}))
        for name in made[-1]["versions"]
    }
    facts = {
        "Backbones": ", ".join(backbones),
        "Runs": f"{len({r.run.id for r in results.finals})} final, {len({r.run.id for r in results.searched})} to choose "
        f"settings by, {len(results.failed)} failed or diverged",
        "Seeds": ", ".join(map(str, seeds)),
        "Scored on": ", ".join(results.data),
        "Device": f"{kinds('device')}, {kinds('precision')}",
        "Time": _time(results.time()),
        "Made with": f"softprompt {kinds('softprompt')}, commit {kinds('commit')}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if name != "softprompt")
        + f"; {kinds('date')}",
    }
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f"<dl>{items}</dl>"


def _time(spent: TimeSpent) -> str:
    if not spent.total:
        return "the runs do not say it"
    if spent.share is None:
        return f"{spent.total:,.0f} s in runs, {spent.evaluation:,.0f} s of it in evaluations; nothing was trained"
    rest = spent.total - spent.steps - spent.evaluation
    return (
        f"{spent.total:,.0f} s in runs: {spent.steps:,.0f} s in training steps, {spent.evaluation:,.0f} s in evaluations, "
        f"{rest:,.0f} s in all else. Training steps: {100 * spent.share:.0f} % of non-evaluation time"
    )


def _doubts(results: StudyResults) -> str:
    found = "".join(f"<li>{escape(text)}</li>" for text in doubts(results))
    return f'<div class="note" role="note"><ul>{found}</ul></div>' if found else ""


def _scores(results: StudyResults) -> str:
    means = {line: mean for line in results.lines if (mean := results.mean(line)) is not None}
    best = max(means, key=means.__getitem__, default="")
    chosen = "Settings were chosen on validation rows. " if results.searched else ""
    read = "Test rows were read once for each final run. " if results.data != ["validation"] else ""
    note = (
        "Mean over seeds ± sample standard deviation [95 % interval of the mean by Student's t] (number of seeds). "
        f"{chosen}{read}The line with the best mean is in bold; the paired test says whether it is better."
    )
    return "<h2>Scores</h2>" + table(score_table(results), "Scores", note, best)


def _comparisons(results: StudyResults) -> str:
    found = comparison_table(results)
    if not found[1]:
        return ""
    smallest = min(int(row[3]) for row in found[1])
    note = (
        "A pair is a seed on one task and its training rows; other conditions and data sets are averaged within it. Mean "
        "difference ± standard deviation [95 % interval by Student's t] (pairs), and the two-sided p of an exact sign-flip "
        "permutation test, alone and corrected for the number of "
        f"comparisons after Holm. With n pairs no p can be below 2 / 2^n, which is {2 / 2**smallest:.3g} for {smallest}."
    )
    return "<h2>Paired comparison</h2>" + table(found, "Paired comparison", note)


def _costs(results: StudyResults) -> str:
    note = (
        "Means over a line's runs under a condition, then medians, which a single run on a busy machine does not change. "
        "Peak memory is the rise of the process's memory above its level before the run, with its backbone loaded; that of the "
        "process is all that it held."
    )
    means, medians = cost_table(results), cost_table(results, statistics.median)
    return f"<h2>Costs</h2>{table(means, 'Costs, means', note)}{table(medians, 'Costs, medians', 'Medians:')}"


def _confusions(results: StudyResults) -> str:
    parts = []
    for line, condition, data in itertools.product(results.lines, results.conditions, results.data):
        if counts := confusion(results.of(line, condition), data):
            name = ", ".join(
                part for part in (line, condition, data if len(results.data) > 1 else "") if part
            )
            parts.append(f"<details><summary>{escape(name)}</summary>{_confusion(counts, name)}</details>")
    if not parts:
        return ""
    note = f"<p>Rows of {escape(', '.join(results.data))} summed over seeds: true labels down, given labels across.</p>"
    return "<h2>Confusion matrices</h2>" + note + "".join(parts)


def _confusion(counts: Mapping[str, Mapping[str, int]], name: str) -> str:
    labels = list(dict.fromkeys([*counts, *(label for row in counts.values() for label in row)]))
    shares = {}
    for gold, row in counts.items():
        total = sum(row.values()) or 1
        shares[gold] = [(str(row.get(label, 0)), row.get(label, 0) / total) for label in labels]
    return heat_map(labels, shares, name)


def _halves(results: StudyResults) -> str:
    found = half_table(results)
    if not found[1]:
        return ""
    about = (
        "Accuracy on the classes that were learned and on the others, each among its own half: mean over seeds ± sample "
        "standard deviation. Mean of H: of each seed's harmonic mean, the score above. H of means: of mean base and mean new, "
        "which papers print; it is never the lower of the two."
    )
    return "<h2>Base and new classes</h2>" + table(found, "Base and new classes", about)


def _ensembles(results: StudyResults) -> str:
    found = ensemble_table(results)
    about = (
        "The prompts of a line's seeds answer test rows as an ensemble: by mean probability, by majority vote, by mean class "
        "score (logit). The best member is the best on these very rows: you cannot know it beforehand."
    )
    return "<h2>Ensembles of seeds</h2>" + table(found, "Ensembles of seeds", about) if found[1] else ""


def _accuracy_matrices(results: StudyResults) -> str:
    parts = []
    for line, condition, data in itertools.product(results.lines, results.conditions, results.data):
        matrix = accuracy_matrix(results.of(line, condition), data)
        if matrix:
            name = ", ".join(part for part in (line, condition) if part)
            name += f", {data}" if len(results.data) > 1 else ""
            tasks = [f"task {i + 1}" for i in range(len(matrix))]
            rows = {f"after {tasks[t]}": [(f"{a:.3f}", a) for a in row] for t, row in enumerate(matrix)}
            parts.append(heat_map(tasks, rows, name))
    if not parts:
        return ""
    about = (
        "Mean over seeds ± sample standard deviation. Final average: the mean accuracy on the tasks after the last one. "
        "Incremental average: the mean over stages of the accuracy on all classes so far. Learning accuracy: on each task just "
        "learned."
    )
    note = "<p>Accuracy on the test rows of each task, after each task was learned: mean over seeds.</p>"
    found = table(task_table(results), "Classes in tasks", about)
    return f"<h2>Classes in tasks</h2>{found}<h2>Accuracy matrices</h2>{note}{''.join(parts)}"


def _chosen(results: StudyResults) -> str:
    found = choice_table(results)
    note = "Every setting that was tried, by its mean validation score. The first of equals was chosen."
    name = "What was chosen on validation"
    return f"<h2>{name}</h2>{table(found, name, note)}" if found[1] else ""


def _failed(results: StudyResults) -> str:
    parts = []
    for result in results.failed:
        facts = result.outcome.facts
        told = (
            f"{result.run.id}: {result.outcome.status}: {facts['error']['type']}: {facts['error']['message']}"
        )
        parts.append(
            f"<details><summary>{escape(told)}</summary><pre>{escape(facts['traceback'])}</pre></details>"
        )
    return "<h2>Runs that went wrong</h2>" + "".join(parts) if parts else ""
