"""A study from its plan to its last result. An engine gets runs and a function that makes one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Protocol

from softprompt.errors import CheckpointError, TrainingDiverged
from softprompt.records.run_folders import DamagedRun, Outcome, disk_is_full
from softprompt.store.places import without_folders
from softprompt.studies.batches import batches_of
from softprompt.studies.config import Study
from softprompt.studies.ensembles import make_ensembles
from softprompt.studies.environment import free_kept_memory
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Plan, plan
from softprompt.studies.pruning import pruner
from softprompt.studies.runs import PlannedRun
from softprompt.studies.watching import Prune
from softprompt.studies.worker import Worker
from softprompt.training.progress import Progress, Shared, Silent

Do = Callable[[Sequence[PlannedRun]], int]
"""Make runs, several of them in one batch; returns how many were made. Runs that another process has claimed are left to it.

The failure of a run is recorded, not raised."""

Engine = Callable[[Sequence[Sequence[PlannedRun]], Do], int]
"""Make each run that no other process has claimed, in any order and place, batched or alone; returns how many were made."""


class Show(Protocol):
    """Receives the progress of a study."""

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        """Called with the current plan before the first run and after each run."""
        ...

    def begins(self, runs: Sequence[PlannedRun]) -> Progress:
        """Called when a run, or a batch of runs, begins; returns the object that receives their steps."""
        ...

    def ended(self, run: PlannedRun, outcome: Outcome) -> None: ...

    def note(self, message: str) -> None: ...


class Quiet:
    """Shows no progress."""

    def planned(self, found: Plan, folder: StudyFolder) -> None:
        pass

    def begins(self, runs: Sequence[PlannedRun]) -> Progress:
        return Silent()

    def ended(self, run: PlannedRun, outcome: Outcome) -> None:
        pass

    def note(self, message: str) -> None:
        pass


def in_process(batches: Sequence[Sequence[PlannedRun]], do: Do) -> int:
    """The engine that makes runs in this process, one batch after the other."""
    return sum(do(batch) for batch in batches)


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

    Any number of processes may do this on one folder at the same time. A run that fails keeps its traceback and
    does not stop the others. With retry_failed, runs that failed before are made again.

    Raises ValueError before the first run if settings of any run do not fit together, and OSError if the disk is full; then
    the finished runs are kept, and the same call resumes.
    """
    try:
        return _conduct(study, folder, worker, engine, show or Quiet(), retry_failed)
    except Exception as error:
        if not disk_is_full(error):
            raise
        raise OSError(
            f"the disk is full ({error}). Every finished run of {folder.path} is kept, the others resume from their"
            " checkpoints: make room and give the same command again"
        ) from error


def _conduct(
    study: Study, folder: StudyFolder, worker: Worker, engine: Engine, show: Show, retry_failed: bool
) -> Plan:
    found = plan(study, folder.outcome)
    folder.begin(study)
    if retry_failed:
        for run in found.runs:
            with folder.claim(run.id) as free:
                outcome = folder.outcome(run.id)
                if free and outcome is not None and outcome.status in ("failed", "diverged"):
                    folder.forget(run.id)
        found = plan(study, folder.outcome)

    def do(runs: Sequence[PlannedRun]) -> int:
        return make(study, runs, folder, worker, show)

    while True:
        show.planned(found, folder)
        todo = list({run.id: run for run in found.runs if folder.outcome(run.id) is None}.values())
        if not todo:
            if study.ensembles:
                make_ensembles(found, folder, lambda runs: worker.as_ensemble(runs, folder), show.note)
            return found
        if not engine(batches_of(todo, study.together), do):
            show.note("other processes are making the remaining runs: waiting for the first of them")
            with folder.claim(todo[0].id, wait=True):
                pass
        found = plan(study, folder.outcome)


def make(study: Study, runs: Sequence[PlannedRun], folder: StudyFolder, worker: Worker, show: Show) -> int:
    """Make a batch of runs and record how they ended; returns the number of runs that no other living process has claimed.

    Raises OSError if the disk is full.
    """
    with ExitStack() as claims:
        free = [run for run in runs if claims.enter_context(folder.claim(run.id))]
        # Another process may have ended one before the lock was ours.
        todo = [run for run in free if folder.outcome(run.id) is None]
        if len(todo) > 1:
            _attempt_together(study, todo, folder, worker, show)
        for run in todo:
            if folder.outcome(run.id) is None:
                show.ended(run, attempt(study, run, folder, worker, show))
    if free:
        show.planned(plan(study, folder.outcome), folder)
    return len(free)


def _attempt_together(
    study: Study, runs: Sequence[PlannedRun], folder: StudyFolder, worker: Worker, show: Show
) -> None:
    """Make claimed runs in one batch. Any failure except divergence leaves them to be made alone, from their checkpoints, so
    that the failing run is found. Raises OSError if the disk is full.
    """
    started = time.perf_counter()
    for run in runs:
        set_damage_aside(run, folder, show)
        folder.begin_run(run)
    progress = Shared(show.begins(runs), len(runs))
    try:
        found = worker.do(
            runs,
            folder,
            keep_prompt=study.keep_prompts,
            cache_features=study.cache_features,
            progress=progress,
        )
    except Exception as error:
        if disk_is_full(error):
            raise
        show.note(f"{len(runs)} runs are made one after the other, as they cannot be made together: {error}")
        free_kept_memory()
        return
    for run, outcome in zip(runs, found, strict=True):
        if isinstance(outcome, TrainingDiverged):
            outcome = _went_wrong(run, folder, outcome, (time.perf_counter() - started) / len(runs))
        show.ended(run, outcome)


def attempt(study: Study, run: PlannedRun, folder: StudyFolder, worker: Worker, show: Show) -> Outcome:
    """Make a claimed run. A failure becomes its outcome; a damaged folder is set aside first.

    Raises OSError if the disk is full.
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
            raise
        return _went_wrong(run, folder, error, time.perf_counter() - started)


def _went_wrong(run: PlannedRun, folder: StudyFolder, error: Exception, seconds: float) -> Outcome:
    facts = {
        "status": "diverged" if isinstance(error, TrainingDiverged) else "failed",
        "stage": run.stage,
        "error": {"type": type(error).__name__, "message": without_folders(str(error))},
        "traceback": without_folders("".join(traceback.format_exception(error))),
        "wall_seconds": seconds,
    }
    free_kept_memory()
    return folder.end(run.id, facts)


def set_damage_aside(run: PlannedRun, folder: StudyFolder, show: Show) -> None:
    """Move the folder of an unclaimed run to set-aside/ if its files are damaged."""
    try:
        folder.check(run.id)
    except DamagedRun as error:
        show.note(f"damaged: {error}; it is kept in {folder.set_aside(run.id)}, and the run is made anew")


def _do(study: Study, run: PlannedRun, folder: StudyFolder, worker: Worker, show: Show) -> Outcome:
    prune: Prune | None = None
    if run.trial is not None and study.search.prune:
        prune = pruner(study, run, folder)
    folder.begin_run(run)
    [outcome] = worker.do(
        [run],
        folder,
        keep_prompt=study.keep_prompts,
        cache_features=study.cache_features,
        progress=show.begins([run]),
        prune=prune,
    )
    assert isinstance(outcome, Outcome)  # a run that is made alone raises when it diverges
    return outcome
