"""A study's results as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import itertools
import re
import statistics
from collections.abc import Sequence

from softprompt.errors import printable
from softprompt.protocols.base_to_new import SCORES as HALVES
from softprompt.protocols.base_to_new import harmonic_means
from softprompt.protocols.ensembling import RULES
from softprompt.studies.comparisons import comparisons
from softprompt.studies.results import COSTS, Average, StudyResults, chosen_rows, confusion
from softprompt.studies.statistics import Summary, summarize

Table = tuple[list[str], list[list[str]]]
"""Names of the columns, and the rows."""


def score_table(results: StudyResults) -> Table:
    """A line for each thing compared, a column for each condition and data set: mean ± std [95 % interval] (seeds)."""
    columns = [
        (condition, data)
        for condition, data in itertools.product(results.conditions, results.data)
        if any(results.scores(line, condition, data) for line in results.lines)
    ]
    heads = ["", *(_head(results, condition, data) for condition, data in columns)]
    rows = [[line, *(_cell(results, line, c, d) for c, d in columns)] for line in results.lines]
    majority = [results.majority(condition, data) for condition, data in columns]
    if any(value is not None for value in majority):
        rows.append(["always the commonest label", *("" if v is None else f"{v:.3f}" for v in majority)])
    return heads, rows


def comparison_table(results: StudyResults) -> Table:
    """Every pair of lines, see `comparisons`."""
    heads = ["compared (A − B)", "metric", "difference", "pairs", "p", "p, Holm"]
    return heads, [
        [
            f"{c.first} − {c.second}",
            c.metric,
            in_words(c.difference, "+"),
            str(c.difference.count),
            f"{c.p:.3g}",
            f"{c.holm:.3g}",
        ]
        for c in comparisons(results)
    ]


def choice_table(results: StudyResults) -> Table:
    """Every setting that was tried, by its mean validation score; no rows where nothing was chosen."""
    return ["", "settings", "validation", "runs", "ended", "chosen"], [
        [
            _of(row["line"], row["condition"]),
            ", ".join(f"{key} {value}" for key, value in row["settings"].items()),
            "" if row["validation"] is None else f"{row['validation']:.3f}",
            str(row["runs"]),
            row["status"],
            "chosen" if row["chosen"] else "",
        ]
        for row in chosen_rows(results)
    ]


def confusion_table(results: StudyResults) -> Table:
    """How many rows of each true label got each predicted label, over a line's seeds; a row for each pair that occurs."""
    return ["line", "condition", "data", "true", "given", "rows"], [
        [line, condition, data, gold, given, str(count)]
        for line, condition, data in itertools.product(results.lines, results.conditions, results.data)
        for gold, row in confusion(results.of(line, condition), data).items()
        for given, count in row.items()
        if count
    ]


def cost_table(results: StudyResults, average: Average = statistics.fmean) -> Table:
    """The costs of a line's runs: their mean, or statistics.median, which one run on a busy machine does not move.

    Where there are several conditions each has rows of its own: on another data set a head has other numbers, and an average
    over both would be that of no run.
    """
    names = [name for name in COSTS if any(results.cost(line, name) is not None for line in results.lines)]
    several = len(results.conditions) > 1
    return ["", *(COSTS[name] for name in names)], [
        [
            _of(condition, line) if several else line,
            *(_number(results.cost(line, name, average, condition)) for name in names),
        ]
        for condition, line in itertools.product(results.conditions, results.lines)
        if results.of(line, condition)
    ]


def task_table(results: StudyResults) -> Table:
    """Class-incremental runs: mean ± std over seeds of the metrics of `accuracy_matrix`; no rows if there are no such runs."""
    names = ("final_average", "incremental_average", "learning_accuracy", "forgetting", "backward_transfer")
    rows = []
    for condition, line, data in itertools.product(results.conditions, results.lines, results.data):
        found = [r.outcome.facts.get("metrics", {}).get(data, {}) for r in results.of(line, condition)]
        if found and all("final_average" in metrics for metrics in found):
            own = {name: [metrics[name] for metrics in found if name in metrics] for name in names}
            rows.append([_of(condition, line), *(_spread(own[name]) for name in names)])
    return ["", *(name.replace("_", " ") for name in names)], rows


def half_table(results: StudyResults) -> Table:
    """Base-to-new runs: mean ± std over seeds, and H of the two means; no rows if there are no such runs."""
    rows = []
    for condition, line in itertools.product(results.conditions, results.lines):
        found = [r.outcome.facts["metrics"].get("test", {}) for r in results.of(line, condition)]
        if found and all("base" in metrics and "new" in metrics for metrics in found):
            own = {name: [metrics[name] for metrics in found] for name in HALVES}
            of_means = harmonic_means([(m["base"], m["new"]) for m in found])["harmonic_mean_of_means"]
            rows.append([_of(condition, line), *(_spread(own[name]) for name in HALVES), f"{of_means:.3f}"])
    return ["", "base", "new", "mean of H", "H of means"], rows


def ensemble_table(results: StudyResults) -> Table:
    """Test scores of ensembles of a line's seeds, beside the mean and the best of their members; no rows without ensembles."""
    names = (*RULES, "mean", "best")
    rows = [
        [what, str(len(facts["members"])), facts["metric"], *(f"{facts[name]:.3f}" for name in names)]
        for what, facts in results.ensembles
    ]
    heads = ["", "prompts", "metric", *(f"by {rule}" for rule in RULES), "mean member", "best member"]
    return heads, rows


def run_table(results: StudyResults) -> Table:
    """A row for each run that has ended."""
    axes = list(dict.fromkeys(axis for run in results.plan.runs for axis in run.cell))
    heads = [
        "run",
        "status",
        "stage",
        *axes,
        "seed",
        "chosen",
        "metric",
        "validation",
        *_judged(results),
        *COSTS,
        "tensors",
    ]
    ended = list({r.run.id: r for r in (*results.searched, *results.finals, *results.failed)}.values())
    rows = []
    for result in ended:
        run, facts = result.run, result.outcome.facts
        scores = [
            result.score(name) if "main_metric" in facts else None
            for name in ("validation", *_judged(results))
        ]
        chosen = " ".join(f"{key}={value}" for key, value in run.chosen.items())
        cells = [
            run.id,
            result.outcome.status,
            run.stage,
            *(run.cell.get(axis, "") for axis in axes),
            str(run.seed),
        ]
        numbers = [*scores, *(result.cost(name) for name in COSTS)]
        sizes = " ".join(
            f"{name} {'x'.join(map(str, shape))}" for name, shape in facts.get("tensors", {}).items()
        )
        told = [*("" if n is None else repr(n) for n in numbers), sizes]
        rows.append([*cells, chosen, facts.get("main_metric", ""), *told])
    return heads, rows


def as_csv(table: Table) -> str:
    """The text, with an apostrophe in front if a spreadsheet would run it as a formula."""
    heads, rows = table
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([no_formula(c) for c in row] for row in [heads, *rows])
    return text.getvalue()


def as_markdown(table: Table) -> str:
    heads, rows = table
    cells = [[_markdown(cell) for cell in row] for row in [heads, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(heads) - 1), *lines[1:]]) + "\n"


def as_latex(table: Table) -> str:
    """A tabular with booktabs' rules."""
    heads, rows = table
    # The line break before a row would take a bracket or a star at its beginning for its own.
    lines = [re.sub(r"^(?=[\[*])", "{}", " & ".join(map(_tex, row))) + r" \\" for row in [heads, *rows]]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}"
    return (
        "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])
        + "\n"
    )


def in_words(summary: Summary, sign: str = "") -> str:
    """ "0.812 ± 0.013 [0.780, 0.844] (3)"."""
    spread = "" if summary.std is None else f" ± {summary.std:.3f}"
    inside = ""
    if summary.low is not None and summary.high is not None:
        inside = f" [{summary.low:{sign}.3f}, {summary.high:{sign}.3f}]"
    return f"{summary.mean:{sign}.3f}{spread}{inside} ({summary.count})"


def _judged(results: StudyResults) -> Sequence[str]:
    return [name for name in results.data if name != "validation"]


def _head(results: StudyResults, condition: str, data: str) -> str:
    where = [] if len(results.data) == 1 and data == "test" else [data]
    return ", ".join([*([condition] if condition else []), *where, results.metric(condition)])


def _cell(results: StudyResults, line: str, condition: str, data: str) -> str:
    summary = results.summary(line, condition, data)
    return "" if summary is None else in_words(summary)


def _of(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    summary = summarize(values)
    return f"{summary.mean:.3f}" + ("" if summary.std is None else f" ± {summary.std:.3f}")


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def no_formula(cell: str) -> str:
    """The text with an apostrophe in front if a spreadsheet would run it, and control characters as codes."""
    cell = "'" + cell if cell.startswith(_FORMULA) and not _NUMBERS.fullmatch(cell) else cell
    return printable(cell)


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NUMBERS = re.compile(r"[+-][0-9.,eE±+\- \[\]()]*")  # "-0.012", "+0.012 ± 0.003 [-0.001, +0.025] (3)"


def _markdown(cell: str) -> str:
    """The text, escaped so that it stays within its cell and is read as no HTML, link, picture, code or emphasis."""
    cell = re.sub(r"(\\*)\|", lambda found: 2 * found[1] + "\\|", printable(re.sub(r"\s+", " ", cell)))
    cell = re.sub(r"&(?=#?\w+;)", "&amp;", cell).replace("<", "&lt;").replace("](", "]\\(")
    return re.sub(r"[`*]", r"\\\g<0>", cell)


def _tex(text: str) -> str:
    return printable(re.sub(r"\s+", " ", text)).translate(_TEX)


_TEX = {ord(sign): "\\" + sign for sign in "&%#_{}$"} | {
    ord("\\"): r"\textbackslash{}",
    ord("±"): r"$\pm$",
    ord("−"): "$-$",
    ord("<"): r"\textless{}",
    ord(">"): r"\textgreater{}",
    ord("|"): r"\textbar{}",
    ord("~"): r"\textasciitilde{}",
    ord("^"): r"\textasciicircum{}",
}
