"""The worker makes runs: it gathers what a run needs, lets the protocol measure, and writes the result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.errors import TrainingDiverged
from softprompt.features.cache import FeatureCache
from softprompt.protocols.base import Experiment, Judge, ProtocolResult
from softprompt.protocols.ensembling import PromptEnsemble
from softprompt.records.run_folders import Outcome
from softprompt.studies.environment import environment, peak_memory, reset_peak
from softprompt.studies.folder import StudyFolder
from softprompt.studies.run_settings import RunSettings
from softprompt.studies.runs import PlannedRun
from softprompt.studies.supplies import OpenBackbone, Supplies
from softprompt.studies.watching import Prune, Pruned, Watcher, concerns_in
from softprompt.training.progress import Progress, Silent
from softprompt.tuned import load


@dataclass(frozen=True)
class _Start:
    """The start of a run, by the clock and by processor time, which counts also on a machine that has other work.

    memory: what stood before it, as `reset_peak` says it
    """

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)
    memory: Mapping[str, int] = field(default_factory=dict)

    def passed(self, runs: int = 1) -> tuple[float, float]:
        """The seconds since, divided by the number of runs: by the clock and by processor time."""
        return (time.perf_counter() - self.wall) / runs, (time.process_time() - self.cpu) / runs


@dataclass(frozen=True)
class _Job:
    """A run that is being made.

    kept  where its prompt is saved; None: it is not
    """

    run: PlannedRun
    settings: RunSettings
    experiment: Experiment
    watcher: Watcher
    kept: Path | None


class Worker:
    """Makes runs one after the other, with supplies that it keeps."""

    def __init__(self, open_backbone: OpenBackbone) -> None:
        """open_backbone: loads what a config describes."""
        self._supplies = Supplies(open_backbone)

    def do(
        self,
        runs: Sequence[PlannedRun],
        folder: StudyFolder,
        *,
        keep_prompt: bool,
        cache_features: bool | str = False,
        progress: Progress | None = None,
        prune: Prune | None = None,
    ) -> list[Outcome | TrainingDiverged]:
        """Make or resume a run and write how it ended; or make several of one of the `batches_of` a study in one pass.

        Of several one that diverged is not written: the error stands in its place. Raises whatever else goes wrong in any of
        them; those that ended before it stay ended.
        """
        start = _Start()
        cache, shown = FeatureCache.of(cache_features), progress or Silent()
        jobs = [
            self._job(run, folder.run(run.id), keep_prompt=keep_prompt, cache=cache, shown=shown, prune=prune)
            for run in runs
        ]
        start = replace(start, memory=reset_peak(jobs[0].experiment.backbone.device))
        concerns: list[str] = []
        with concerns_in(concerns):
            judges = _trained(jobs)
        share = start.passed(len(runs))
        outcomes: list[Outcome | TrainingDiverged] = []
        for job, judge in zip(jobs, judges, strict=True):
            if isinstance(judge, TrainingDiverged):
                outcomes.append(judge)
                continue
            # What was done for all of them is charged to each in equal parts.
            begun = _Start(time.perf_counter() - share[0], time.process_time() - share[1], start.memory)
            facts, history = self._measured(job, judge, begun, concerns, len(runs))
            outcomes.append(self._end(job, folder, facts, history))
        return outcomes

    def _job(
        self,
        run: PlannedRun,
        place: Path,
        *,
        keep_prompt: bool,
        cache: FeatureCache | None,
        shown: Progress,
        prune: Prune | None,
    ) -> _Job:
        settings = run.settings()
        config = settings.config
        sources = {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}
        rows = {
            name: None if source is None else self._supplies.rows(source, name)
            for name, source in sources.items()
        }
        backbone = self._supplies.backbone(config.backbone)
        watcher = Watcher(place, settings.protocol.main_metric(config.task), shown, prune)
        experiment = Experiment(
            backbone=backbone,
            task=config.task,
            method=config.method,
            recipe=config.recipe,
            train=rows["train"] or (),
            validation=rows["validation"],
            test=rows["test"],
            folder=place / "checkpoint",
            cache=cache,
            progress=watcher,
            bench=self._supplies.bench(settings),
        )
        kept = place / "prompt" if keep_prompt and run.stage == "final" else None
        return _Job(run, settings, experiment, watcher, kept)

    def _measured(
        self, job: _Job, judge: Judge, begun: _Start, shared_concerns: Sequence[str], together: int
    ) -> tuple[dict[str, Any], Sequence[Mapping[str, Any]]]:
        """The record of a run that ended or was given up, and its history."""
        watcher, concerns = job.watcher, list(shared_concerns)
        began = time.perf_counter()
        try:
            with concerns_in(concerns):
                found = judge()
        except Pruned:
            return _given_up(job) | _cost(job.experiment.backbone, begun, watcher.times), ()
        # Where nothing was trained all of it was evaluation, or a search.
        watcher.times["evaluation"] += found.test_seconds if watcher.began else time.perf_counter() - began
        if job.kept is not None and found.prompt is not None:
            identity = found.prompt.identity or self._supplies.identity(job.settings.config.backbone)
            replace(found.prompt, identity=identity).save(job.kept, overwrite=True)
        facts = {
            "status": "finished",
            "stage": job.run.stage,
            **_told(found),
            "rows": {name: self._supplies.about(part) for name, part in found.rows.items()},
            "evaluations": watcher.evaluations,
            "concerns": [*concerns, *found.concerns],
            "together": together,
        }
        backbone = job.experiment.backbone if found.prompt is None else found.prompt.backbone
        return facts | _cost(backbone, begun, watcher.times), found.history

    def _end(
        self,
        job: _Job,
        folder: StudyFolder,
        facts: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> Outcome:
        parameters = self._supplies.parameters(job.settings.config.backbone)
        outcome = folder.end(job.run.id, {**facts, "backbone_parameters": parameters}, history)
        shutil.rmtree(folder.run(job.run.id) / "checkpoint", ignore_errors=True)
        return outcome

    def as_ensemble(self, runs: Sequence[PlannedRun], folder: StudyFolder) -> dict[str, Any]:
        """The main metric of the runs' prompts as an ensemble on their test rows, by rule, beside the members' mean and best.

        Raises ValueError for prompts that cannot answer together, see `PromptEnsemble`.
        """
        config = runs[0].settings().config
        assert config.data.test is not None  # members have test rows
        backbone = self._supplies.backbone(config.backbone)
        prompts = [load(folder.run(run.id) / "prompt", backbone) for run in runs]
        return PromptEnsemble(prompts).summary(self._supplies.rows(config.data.test, "test"))


def _trained(jobs: Sequence[_Job]) -> list[Judge | TrainingDiverged]:
    """Train several runs together; returns a function for each that measures it. A single run is trained while measured."""
    protocol, experiment = jobs[0].settings.protocol, jobs[0].experiment
    if len(jobs) == 1:
        return [lambda: protocol.measure(experiment)]
    return protocol.train_together([job.experiment for job in jobs])


def _given_up(job: _Job) -> dict[str, Any]:
    metric, evaluations = job.watcher.metric, job.watcher.evaluations
    return {
        "status": "pruned",
        "stage": job.run.stage,
        "main_metric": metric,
        "metrics": {"validation": {metric: evaluations[-1]["value"]}},
        "steps_made": evaluations[-1]["step"],
        "evaluations": evaluations,
    }


def _told(found: ProtocolResult) -> dict[str, Any]:
    """The result as plain values."""
    tensors = {} if found.prompt is None else found.prompt.module.state_dict()
    return {
        "main_metric": found.main_metric,
        "metrics": found.metrics,
        "trained_parameters": found.trained_parameters,
        "learning_rate": found.learning_rate,
        "steps_made": found.steps_made,
        "best_step": found.best_step,
        "seconds": found.seconds,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }


def _cost(backbone: Backbone, started: _Start, times: Mapping[str, float]) -> dict[str, Any]:
    wall, cpu = started.passed()
    return {
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "times": dict(times),
        "peak_memory": {**peak_memory(backbone.device), **started.memory},
        "environment": environment(backbone),
    }
