"""softprompt report: write the results of a study as a page and as tables."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli._console import reporting
from softprompt.cli._options import AsJson, Debug


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a study, as given to softprompt compare --output.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write the report to.", show_default="DIR/report"),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a study's results as one HTML page, with its tables and plots as files beside it."""
    with reporting(as_json, debug) as told:
        from softprompt.cli._results import show_study
        from softprompt.studies import StudyFolder
        from softprompt.studies.report import write_report
        from softprompt.studies.results import read_results

        study = StudyFolder(folder)
        written = write_report(study, output or folder / "report")
        results = read_results(study)
        told.values.update({"page": str(written[0]), "files": [str(path) for path in written]})
        told.values["seconds"] = dataclasses.asdict(results.time())
        show_study(told, results)
        told.human.print(f"the report: {written[0]}", highlight=False, markup=False, soft_wrap=True)
