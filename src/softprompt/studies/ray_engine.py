"""The runs of a study spread over a Ray cluster.

The process that conducts the study distributes the runs and writes the results. Workers make a run in a folder of their own
and send its files. So locks need not work between machines, and a worker that was wrongly taken for dead does no harm.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from softprompt.records.run_folders import Outcome
from softprompt.studies.config import Study, parse_study
from softprompt.studies.engine import Engine, Quiet, Show, attempt, set_damage_aside
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import plan
from softprompt.studies.runs import PlannedRun
from softprompt.studies.supplies import OpenBackbone
from softprompt.studies.worker import Worker

_TRIES = 3  # a run that three workers were lost over is what kills them; a node that refuses three is no use


@contextlib.contextmanager
def over_ray(
    study: Study, folder: StudyFolder, open_backbone: OpenBackbone, show: Show | None = None
) -> Iterator[Engine]:
    """An engine for `conduct`: a worker for each GPU of the cluster, one for a machine without, kept until the end.

    The cluster is the one that is connected to, else that of RAY_ADDRESS, else one that was started on this machine, else one
    that is started here and ends with the engine. Each machine needs this version of softprompt, and backbones and rows under
    the paths that the study has, from the same working directory; only this one writes in the study's folder. Machines may
    come and go. If a worker is lost, another makes its run again from the start.

    Raises ValueError without the package ray, RuntimeError if no worker can be had.
    """
    ray = _ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here tells nobody
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    crew = _Crew(ray, (dict(study.values), open_backbone, str(Path.cwd())))
    try:
        yield lambda batches, _: _spread(
            [run for batch in batches for run in batch], study, folder, crew, show or Quiet()
        )
    finally:
        crew.dismiss()
        if is_ours:
            ray.shutdown()


@dataclass
class _Hand:
    """A worker: its node, its current run (None while it starts), and the backbone that it has loaded."""

    actor: Any
    node: str
    run: PlannedRun | None = None
    claim: ExitStack = field(default_factory=ExitStack)
    backbone: Any = None


@dataclass
class _Crew:
    """All workers, idle and busy."""

    ray: Any
    settings: tuple[Any, ...]  # of a _RunMaker
    busy: dict[Any, _Hand] = field(default_factory=dict)  # by the reference to what it will give
    idle: list[_Hand] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)  # by node
    why: BaseException | None = None

    def hire(self) -> None:
        """Start a worker wherever one is missing."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = Counter(hand.node for hand in (*self.idle, *self.busy.values()))
        for node in self.ray.nodes():
            name, has = node["NodeID"], node["Resources"] if node["Alive"] else {}
            gpus, cpus = int(has.get("GPU", 0)), int(has.get("CPU", 0))
            wanted = min(gpus or 1, cpus)
            if self.refused[name] >= _TRIES:
                continue
            for _ in range(wanted - here[name]):
                kind = self.ray.remote(_RunMaker).options(
                    num_cpus=1,
                    num_gpus=min(gpus, 1),
                    scheduling_strategy=NodeAffinitySchedulingStrategy(name, soft=False),
                )
                # Ray gives a process as many threads as it asks for CPUs, and one that waits for all would wait for ever.
                actor = kind.remote(*self.settings, cpus // wanted)
                self.busy[actor.ready.remote()] = _Hand(actor, name)

    def lose(self, hand: _Hand, why: BaseException) -> None:
        if hand.run is None:
            self.refused[hand.node] += 1
        self.why = why
        self._end(hand)

    def dismiss(self) -> None:
        for hand in (*self.idle, *self.busy.values()):
            self._end(hand)
        self.idle, self.busy = [], {}

    def _end(self, hand: _Hand) -> None:
        hand.claim.close()
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(hand.actor)  # one that was only out of reach would continue for nothing


def _spread(runs: Sequence[PlannedRun], study: Study, folder: StudyFolder, crew: _Crew, show: Show) -> int:
    todo, done = list(runs), 0
    lost: Counter[str] = Counter()
    while todo or any(hand.run for hand in crew.busy.values()):
        crew.hire()
        while todo and crew.idle:
            _hand_out(todo, study, folder, crew, show)
        if not crew.busy:
            if not todo:
                break
            raise RuntimeError(
                f"the Ray cluster has no worker left for the {len(todo)} runs that remain; finished runs are kept: {crew.why}"
            ) from crew.why
        ready, _ = crew.ray.wait(list(crew.busy), num_returns=1, timeout=5)  # then looks for new nodes
        for reference in ready:
            hand = crew.busy.pop(reference)
            run = hand.run
            try:
                files = crew.ray.get(reference)
            except crew.ray.exceptions.RayTaskError as error:
                crew.lose(hand, error)
                raise error.cause from error
            except crew.ray.exceptions.RayError as error:
                if run is None:
                    crew.lose(hand, error)
                    continue
                lost[run.id] += 1
                if lost[run.id] < _TRIES:
                    show.note(f"the worker that was at {run.id} is lost: another makes the run again")
                    todo.insert(0, run)
                else:
                    show.ended(run, _fatal(run, folder, error))
                    done += 1
                crew.lose(hand, error)
                continue
            crew.idle.append(hand)
            if run is not None:
                outcome = folder.take_in(run.id, files)
                hand.run = None
                hand.claim.close()
                done += 1
                show.ended(run, outcome)
                show.planned(plan(study, folder.outcome), folder)
    return done


def _hand_out(todo: list[PlannedRun], study: Study, folder: StudyFolder, crew: _Crew, show: Show) -> None:
    """Give a run to an idle worker: on the backbone that it has loaded, or else on one that no worker has loaded."""
    hand = crew.idle[0]
    loaded = [other.backbone for other in (*crew.idle, *crew.busy.values())]
    run = min(todo, key=lambda r: (r.values["backbone"] != hand.backbone, r.values["backbone"] in loaded))
    todo.remove(run)
    claim = ExitStack()
    if not claim.enter_context(folder.claim(run.id)) or folder.outcome(run.id) is not None:
        claim.close()
        return
    set_damage_aside(run, folder, show)
    known: dict[str, Outcome] = {}
    if run.trial is not None:  # whether it is given up depends on the trials before it
        trials = (r.id for r in plan(study, folder.outcome).runs if r.trial is not None)
        known = {name: outcome for name in trials if (outcome := folder.outcome(name)) is not None}
    crew.idle.remove(hand)
    hand.run, hand.claim, hand.backbone = run, claim, run.values["backbone"]
    crew.busy[hand.actor.make.remote(run, known)] = hand


def _fatal(run: PlannedRun, folder: StudyFolder, error: BaseException) -> Outcome:
    message = f"{_TRIES} workers were lost over this run; memory is the usual reason: {error}"
    told = {"type": type(error).__name__, "message": message}
    folder.begin_run(run)
    facts = {"status": "failed", "stage": run.stage, "error": told, "traceback": message, "wall_seconds": 0.0}
    return folder.end(run.id, facts)


class _RunMaker:
    """The worker process, which keeps its backbone and its rows from run to run."""

    def __init__(
        self, study: Mapping[str, Any], open_backbone: OpenBackbone, directory: str, threads: int
    ) -> None:
        os.chdir(directory)  # paths in a study start from there
        torch.set_num_threads(max(threads, 1))
        self._study, self._worker = parse_study(study), Worker(open_backbone)

    def ready(self) -> None:
        """Returns when the worker is ready."""

    def make(self, run: PlannedRun, known: Mapping[str, Outcome]) -> dict[str, bytes]:
        """Make a run; returns the files of its folder by relative path."""
        with tempfile.TemporaryDirectory() as place:
            folder = StudyFolder(Path(place), dict(known))
            attempt(self._study, run, folder, self._worker, Quiet())
            root = folder.run(run.id)
            files = [path for path in sorted(root.rglob("*")) if path.is_file()]
            return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ValueError("this engine needs the package ray: pip install 'softprompt[ray]'") from error
    return ray
