"""A study's report: one HTML page that needs nothing else, and its tables and plots as files."""

from __future__ import annotations

import statistics
from pathlib import Path

from softprompt.files import write_bytes, write_text
from softprompt.studies.dots import dot_plot
from softprompt.studies.figures import plots
from softprompt.studies.folder import StudyFolder
from softprompt.studies.page import page
from softprompt.studies.results import read_results
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
    if (scores := dot_plot(results)) is not None:
        pictures = [scores, *pictures]
    files |= {f"{plot.name}.svg": plot.file() for plot in pictures}
    for name, text in files.items():
        write_text(output / name, text)
    for plot in pictures:
        write_bytes(output / f"{plot.name}.png", plot.png())
    return [output / name for name in (*files, *(f"{plot.name}.png" for plot in pictures))]
