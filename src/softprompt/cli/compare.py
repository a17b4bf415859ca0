"""softprompt compare: run a study. Several processes may work on one folder."""

from __future__ import annotations

import contextlib
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import AsJson, Debug, open_configured

if TYPE_CHECKING:
    from softprompt.fitting.yaml_file import Document
    from softprompt.studies import Outcome, Plan, PlannedRun, StudyFolder


class EngineName(StrEnum):
    process = "process"
    ray = "ray"


def compare(
    study: Annotated[
        Path, typer.Argument(help="YAML file with what the runs share, axes, seeds and select.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write the study to.", show_default=False)
    ] = ...,  # type: ignore[assignment]
    engine: Annotated[
        EngineName, typer.Option(help="Where the runs are made: in this process, or on a Ray cluster.")
    ] = EngineName.process,
    full: Annotated[
        bool, typer.Option("--full", help="Run the study's large variant, its key `full`.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Repeat runs that failed before.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the study and list its runs, but run nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a study: every combination of backbones, tasks, methods, settings and seeds that has no result yet."""
    with reporting(as_json, debug) as report:
        try:
            failed = _compare(report, study, output, engine, full, retry_failed, dry_run, quiet)
        except KeyboardInterrupt as interrupt:
            flags = [flag for flag, given in (("--full", full), ("--quiet", quiet)) if given]
            flags += [] if engine == EngineName.process else ["--engine", engine.value]
            again = ["softprompt", "compare", str(study), "--output", str(output), *flags]
            interrupt.add_note(f"to resume: {shlex.join(again)}")
            raise
    if failed:
        raise typer.Exit(1)


def _compare(
    report: Report,
    path: Path,
    output: Path,
    engine: EngineName,
    full: bool,
    retry_failed: bool,
    dry_run: bool,
    quiet: bool,
) -> int:
    from softprompt import studies
    from softprompt.cli._study_progress import StudyProgress
    from softprompt.fitting.settings import SettingError
    from softprompt.fitting.yaml_file import read_yaml
    from softprompt.studies.engine import Quiet

    study = studies.read_study(path, full=full)
    folder = studies.StudyFolder(output)
    try:
        found = studies.plan(study, folder.outcome)
    except SettingError as error:
        line = _line_of(read_yaml(path), error.key)
        raise ValueError(f"{path}{'' if line is None or full else f', line {line}'}: {error}") from error
    if dry_run:
        for run in found.runs:
            report.human.print(run.id, highlight=False, markup=False)
        report.values.update({"runs": len({run.id for run in found.runs}), "later": found.later})
        report.human.print(f"{len({run.id for run in found.runs})} runs, {found.later} more after them")
        return 0
    worker = studies.Worker(open_configured)
    with contextlib.ExitStack() as stack:
        show = Quiet() if quiet else stack.enter_context(StudyProgress(report.notes))
        use: studies.Engine = studies.in_process
        if engine == EngineName.ray:
            from softprompt.studies.ray_engine import over_ray

            use = stack.enter_context(over_ray(study, folder, open_configured, show))
        found = studies.conduct(study, folder, worker, engine=use, show=show, retry_failed=retry_failed)
    return _tell(report, found, folder, output)


def _tell(report: Report, found: Plan, folder: StudyFolder, output: Path) -> int:
    from softprompt.cli._results import show_study
    from softprompt.studies.results import read_results

    ended = [(run, outcome) for run in found.runs if (outcome := folder.outcome(run.id)) is not None]
    failed = [(run, outcome) for run, outcome in ended if _went_wrong(run, outcome)]
    for run, outcome in failed:
        error = outcome.facts["error"]
        report.warn(
            f"{run.id} {outcome.status}: {error['type']}: {error['message']} (traceback in {folder.run(run.id)})"
        )
    for sentence in found.stuck:
        report.warn(sentence)
    if failed:
        report.note("the same command with --retry-failed repeats them")
    runs = len({run.id for run, _ in ended})
    report.values.update({"study": str(output), "runs": runs, "failed": [run.id for run, _ in failed]})
    report.human.print(f"{runs} runs in {output}", highlight=False, markup=False, soft_wrap=True)
    if any(run.stage == "final" and outcome.status == "finished" for run, outcome in ended):
        show_study(report, read_results(folder))
        command = shlex.join(["softprompt", "report", str(output)])
        report.human.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)
    return len(failed) + len(found.stuck)


def _went_wrong(run: PlannedRun, outcome: Outcome) -> bool:
    # In a search a learning rate that is too high is a result like any other.
    return outcome.status == "failed" or (outcome.status == "diverged" and run.stage == "final")


def _line_of(document: Document, key: str) -> int | None:
    """The line of a study's file that gives its runs a setting: that of the axis which varies it, else its own."""
    for place, line in document.lines.items():
        if place[:1] == ("axes",) and len(place) == 2 and f"{key}.".startswith(f"{place[1]}."):
            return line
    return document.line(key)
