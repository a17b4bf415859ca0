"""The page of a study: the finding first, then scores, costs and mistakes, and how it was made at the end."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from softprompt import store
from softprompt.pages import data_url, render
from softprompt.studies.dots import dot_values, dots_of
from softprompt.studies.doubts import doubts
from softprompt.studies.drawing import Plot
from softprompt.studies.finding import few_rows, finding
from softprompt.studies.results import StudyResults, TimeSpent, accuracy_matrix, confusion
from softprompt.studies.tables import (
    Table,
    as_csv,
    as_latex,
    as_markdown,
    choice_table,
    comparison_table,
    cost_table,
    ensemble_table,
    half_table,
    score_table,
    task_table,
)

_SHOWN_FIRST = 4  # dot plots; a study of many conditions has the others folded away
_ROOM = 3_000_000  # characters for all pictures
_LARGEST_SVG = 1_000_000
_MOST_FAILED = 30  # runs whose traceback is shown
_LARGEST = 15  # labels of a confusion matrix: of more labels the commonest confusions are listed


def page(results: StudyResults, pictures: Sequence[Plot]) -> str:
    """The whole page as HTML. Every text that comes from a config, a label or an error is escaped."""
    drawn = _drawn(pictures)
    trade_offs = [picture for name, picture in drawn.items() if name.startswith("score-by-")]
    sections = [
        _scores(results),
        _table(
            "Table of scores", score_table(results), _about_scores(results), "scores", best=_best(results)
        ),
        _table("Paired comparison", comparison_table(results), _about_pairs(results), "comparisons"),
        _costs(results, trade_offs),
        *(_section(one["title"], plots=[one]) for one in drawn.values() if one not in trade_offs),
        _confusions(results),
        _table("Base and new classes", half_table(results), _HALVES, "halves"),
        _table("Ensembles of seeds", ensemble_table(results), _ENSEMBLES, "ensembles"),
        _table("Classes in tasks", task_table(results), _TASKS, "tasks"),
        _accuracy_matrices(results),
        _table("What was chosen on validation", choice_table(results), _CHOICES, "choices"),
        _failed(results),
        _section("How it was made", facts=_facts(results)),
    ]
    sentence, remark = finding(results)
    return render(
        "report.html",
        title=results.study.title,
        finding=sentence,
        remark=remark,
        warning=few_rows(results),
        sections=[section for section in sections if section is not None],
    )


_HALVES = (
    "Accuracy on the classes that were learned and on the others, each among its own half: mean over seeds ± sample standard "
    "deviation. Mean of H: of each seed's harmonic mean, the score above. H of means: of mean base and mean new, which papers "
    "print; it is never the lower of the two."
)
_ENSEMBLES = (
    "The prompts of a line's seeds answer test rows as an ensemble: by mean probability, by majority vote, by mean class score "
    "(logit). The best member is the best on these very rows: you cannot know it beforehand."
)
_TASKS = (
    "Mean over seeds ± sample standard deviation. Final average: the mean accuracy on the tasks after the last one. "
    "Incremental average: the mean over stages of the accuracy on all classes so far. Learning accuracy: on each task just "
    "learned."
)
_CHOICES = "Every setting that was tried, by its mean validation score. The first of equals was chosen."
_COSTS = (
    "Means over a line's runs under a condition; costs-median.csv beside this page has medians, which a single run on a busy "
    "machine does not change. Peak memory is the rise of the process's memory above its level before the run, with its "
    "backbone loaded; that of the process is all that it held."
)


def _section(title: str, told: str = "", **parts: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "dots": (),
        "first": _SHOWN_FIRST,
        "notes": (),
        "table": None,
        "best": "",
        "files": (),
    }
    empty |= {"plots": (), "maps": (), "folded": False, "texts": (), "facts": None}
    return {"title": title, "told": told, **empty, **parts}


def _table(title: str, content: Table, told: str, file: str, *, best: str = "") -> dict[str, Any] | None:
    return (
        _section(title, told, table=content, best=best, files=_files(file, content)) if content[1] else None
    )


def _files(name: str, content: Table) -> list[tuple[str, str, str]]:
    """The table as CSV, LaTeX and Markdown: kind, name of the file, and an address that holds it."""
    made = (
        ("CSV", "csv", as_csv(content), "text/csv"),
        ("LaTeX", "tex", as_latex(content), "text/x-tex"),
        ("Markdown", "md", as_markdown(content), "text/markdown"),
    )
    return [
        (kind, f"{name}.{end}", data_url(text, f"{media};charset=utf-8")) for kind, end, text, media in made
    ]


def _drawn(pictures: Sequence[Plot]) -> dict[str, dict[str, Any]]:
    """The pictures by their names: as SVG, a large one as PNG, and one for which there is no room as the name of its file."""
    found, room = {}, _ROOM
    for plot in pictures:
        svg = Markup(plot.svg())
        if len(svg) > min(room, _LARGEST_SVG):
            address = data_url(plot.png(), "image/png")
            picture = Markup('<img class="drawn" alt="{}" src="{}">').format(plot.alternative, address)
            beside = Markup("<p>This picture is too large for the page: {}.svg lies beside it.</p>").format(
                plot.name
            )
            svg = picture if len(picture) <= room else beside
        room -= len(svg)
        found[plot.name] = {"name": plot.name, "title": plot.title, "told": plot.alternative, "svg": svg}
    return found


def _scores(results: StudyResults) -> dict[str, Any]:
    return _section(
        "Scores", dots=[dot_values(results, dots) for dots in dots_of(results)], notes=doubts(results)
    )


def _best(results: StudyResults) -> str:
    means = {line: mean for line in results.lines if (mean := results.mean(line)) is not None}
    return max(means, key=means.__getitem__, default="")


def _about_scores(results: StudyResults) -> str:
    chosen = "Settings were chosen on validation rows. " if results.searched else ""
    read = "Test rows were read once for each final run. " if results.data != ["validation"] else ""
    return (
        "Mean over seeds ± sample standard deviation [95 % interval] (number of seeds). The interval of an accuracy is "
        "Wilson's for one seed, and a bootstrap's over seeds and rows for several; that of other scores is a bootstrap's over "
        "seeds. "
        f"{chosen}{read}The line with the best mean is in bold; the paired test says whether it is better."
    )


def _about_pairs(results: StudyResults) -> str:
    rows = comparison_table(results)[1]
    smallest = min((int(row[3]) for row in rows), default=1)
    return (
        "A pair is a seed on one task and its training rows; other conditions and data sets are averaged within it. Mean "
        "difference ± standard deviation [95 % interval by Student's t] (pairs), and the two-sided p of an exact sign-flip "
        "permutation test, alone and corrected for the number of comparisons after Holm. With n pairs no p can be below "
        f"2 / 2^n, which is {2 / 2**smallest:.3g} for {smallest}."
    )


def _costs(results: StudyResults, trade_offs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    found = cost_table(results)
    section = _table("Costs", found, _COSTS, "costs")
    if section is not None:
        section["plots"] = trade_offs
        [(_, file, address), *_others] = _files("costs-median", cost_table(results, statistics.median))
        section["files"] += [("CSV of medians", file, address)]
    return section


def _confusions(results: StudyResults) -> dict[str, Any] | None:
    maps: list[dict[str, Any]] = []
    listed: list[list[str]] = []
    for line, condition, data in itertools.product(results.lines, results.conditions, results.data):
        if counts := confusion(results.of(line, condition), data):
            name = ", ".join(filter(None, (line, condition, data if len(results.data) > 1 else "")))
            if len(counts) <= _LARGEST:
                maps.append(_confusion(counts, name))
            else:
                listed += _commonest(counts, name)
    if not maps and not listed:
        return None
    note = f"Rows of {', '.join(results.data)} summed over seeds: true labels down, given labels across."
    table = (["", "true", "given", "rows"], listed) if listed else None
    return _section("Confusion matrices", note, maps=maps, folded=True, table=table)


def _confusion(counts: Mapping[str, Mapping[str, int]], name: str) -> dict[str, Any]:
    labels = list(dict.fromkeys([*counts, *(label for row in counts.values() for label in row)]))
    shares = {}
    for gold, row in sorted(counts.items(), key=lambda item: -sum(item[1].values())):
        total = sum(row.values()) or 1
        shares[gold] = [(str(row.get(label, 0)), row.get(label, 0) / total) for label in labels]
    return {"name": name, "columns": labels, "rows": shares}


def _commonest(counts: Mapping[str, Mapping[str, int]], name: str, most: int = 10) -> list[list[str]]:
    """The commonest confusions of a line, as rows of a table."""
    wrong = [
        (n, gold, given) for gold, row in counts.items() for given, n in row.items() if n and gold != given
    ]
    return [[name, gold, given, str(n)] for n, gold, given in sorted(wrong, key=lambda one: -one[0])[:most]]


def _accuracy_matrices(results: StudyResults) -> dict[str, Any] | None:
    maps = []
    for line, condition, data in itertools.product(results.lines, results.conditions, results.data):
        matrix = accuracy_matrix(results.of(line, condition), data)
        if matrix:
            name = ", ".join(filter(None, (line, condition, data if len(results.data) > 1 else "")))
            tasks = [f"task {i + 1}" for i in range(len(matrix))]
            rows = {f"after {tasks[t]}": [(f"{a:.3f}", a) for a in row] for t, row in enumerate(matrix)}
            maps.append({"name": name, "columns": tasks, "rows": rows})
    note = "Accuracy on the test rows of each task, after each task was learned: mean over seeds."
    return _section("Accuracy matrices", note, maps=maps) if maps else None


def _failed(results: StudyResults) -> dict[str, Any] | None:
    texts = []
    for result in results.failed[:_MOST_FAILED]:
        facts = result.outcome.facts
        told = (
            f"{result.run.id}: {result.outcome.status}: {facts['error']['type']}: {facts['error']['message']}"
        )
        texts.append((told, facts["traceback"]))
    more = len(results.failed) - len(texts)
    told = f"{more} more are in runs.csv." if more else ""
    return _section("Runs that went wrong", told, texts=texts) if texts else None


def _facts(results: StudyResults) -> dict[str, str]:
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
    return {
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
        "To repeat it": "softprompt compare study.yaml --output DIR; softprompt report DIR. The study's folder has study.yaml.",
    }


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
