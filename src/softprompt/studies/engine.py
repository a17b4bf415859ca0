"""A study from its plan to its last result. An engine is handed runs and a function that does one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from softprompt.errors import CheckpointError, TrainingDiverged
from softprompt.progress import Progress, Silent
from softprompt.studies.config import Study
from softprompt.studies.environment import free_kept_memory
from softprompt.studies.folder import DamagedRun, StudyFolder, disk_is_full
from softprompt.studies.plan import Outcome, Plan, PlannedRun, plan
from softprompt.studies.worker import Prune, Worker

Do = Callable[[PlannedRun], bool]
"""Make one run; False: another process is at it. A run that goes wrong is written down, not raised."""

Engine = Callable[[Sequence[PlannedRun], Do], int]
"""Do each of the runs that nobody else is at, in any order and wherever; returns how many were done."""


class Show(Protocol):
    """Is told how a study goes on."""

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        """What is known of the study by now: called before the first run, and after each."""
        ...

    def begins(self, run: PlannedRun) -> Progress:
        """A run begins; returns what is told of its steps."""
        ...

    def ended(self, run: PlannedRun, outcome: Outcome) -> None: ...

    def note(self, message: str) -> None: ...


class Quiet:
    """Shows nothing."""

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        pass

    def begins(self, run: PlannedRun) -> Progress:
        return Silent()

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        pass

    def note(self, message: str) -> None:
        pass


def in_process(runs: Sequence[PlannedRun], do: Do) -> int:
    """This process does them, one after the other."""
    return sum(do(run) for run in runs)


def conduct(
    study: Study,
    folder: StudyFolder,
    worker: Worker,
    *,
    engine: Engine = in_process,
    show: Show | None = None,
    retry_failed: bool = False,
) -> Plan:
    """Make every run of a study that has not ended yet, and return them all.

    Any number of processes may do this on one folder at the same time. A run that goes wrong is left with its traceback
    and does not stop the others. retry_failed: runs that went wrong before are made again.

    Raises ValueError for runs whose settings do not fit together, before the first of them, and OSError for a disk that is
    full: what had ended is there, and the same call goes on.
    """
    show = show or Quiet()
    found = plan(study, folder.outcome)
    folder.begin(study)
    if retry_failed:
        for run in found.runs:
            with folder.claim(run.id) as free:
                outcome = folder.outcome(run.id)
                if free and outcome is not None and outcome.status in ("failed", "diverged"):
                    folder.forget(run.id)
        found = plan(study, folder.outcome)

    def do(run: PlannedRun) -> bool:
        return make(study, run, folder, worker, show)

    while True:
        show.planned(found, folder)
        todo = list({run.id: run for run in found.runs if folder.outcome(run.id) is None}.values())
        if not todo:
            return found
        if not engine(todo, do):
            show.note("the runs that are left are with other processes: waiting for the first of them")
            with folder.claim(todo[0].id, wait=True):
                pass
        found = plan(study, folder.outcome)


def make(study: Study, run: PlannedRun, folder: StudyFolder, worker: Worker, show: Show) -> bool:
    """Make one run and write down how it ended; False: another living process is at it. Raises OSError for a full disk."""
    with folder.claim(run.id) as mine:
        if not mine:
            return False
        if folder.outcome(run.id) is None:  # another process may have ended it before the lock was ours
            show.ended(run, attempt(study, run, folder, worker, show))
    show.planned(plan(study, folder.outcome), folder)
    return True


def attempt(study: Study, run: PlannedRun, folder: StudyFolder, worker: Worker, show: Show) -> Outcome:
    """Make a run that nobody else is at. What goes wrong becomes its outcome; a damaged folder is set aside first.

    Raises OSError for a full disk.
    """
    set_damage_aside(run, folder, show)
    started = time.perf_counter()
    had_checkpoint = (folder.run(run.id) / "checkpoint").exists()
    try:
        try:
            return _do(study, run, folder, worker, show)
        except CheckpointError as error:
            if disk_is_full(error) or not had_checkpoint:
                raise
            # It is damaged, or the data have changed since.
            show.note(f"{error}\nIt is kept in {folder.set_aside(run.id)}, and the run is made anew")
            return _do(study, run, folder, worker, show)
    except Exception as error:
        if disk_is_full(error):
            raise OSError(
                f"the disk of {folder.path} is full ({error}): every run that had ended is there, and {run.id} goes on from "
                "its checkpoint; make room and give the same command again"
            ) from error
        facts = {
            "status": "diverged" if isinstance(error, TrainingDiverged) else "failed",
            "stage": run.stage,
            "error": {"type": type(error).__name__, "message": str(error)},
            "traceback": traceback.format_exc(),
            "wall_seconds": time.perf_counter() - started,
        }
        free_kept_memory()
        return folder.end(run.id, facts)


def set_damage_aside(run: PlannedRun, folder: StudyFolder, show: Show) -> None:
    """Move the folder of a run that nobody is at out of the way if its files cannot be what a run left there."""
    try:
        folder.check(run.id)
    except DamagedRun as error:
        show.note(f"damaged: {error}; it is kept in {folder.set_aside(run.id)}, and the run is made anew")


def _do(study: Study, run: PlannedRun, folder: StudyFolder, worker: Worker, show: Show) -> Outcome:
    prune: Prune | None = None
    if run.trial is not None and study.search.prune:
        from softprompt.studies.search import pruner

        prune = pruner(study, run, folder)
    folder.begin_run(run)
    progress = show.begins(run)
    return worker.do(run, folder, keep_prompt=study.keep_prompts, progress=progress, prune=prune)
