"""What does one run, and keeps what the next one can use: the frozen backbone and the rows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.errors import SoftpromptWarning
from softprompt.files import write_text
from softprompt.fitting import fit
from softprompt.progress import Progress, Record, Silent
from softprompt.protocols.class_incremental import class_incremental_run
from softprompt.protocols.few_shot import few_shot_splits
from softprompt.run_config import BackboneConfig, SourceConfig, source_rows
from softprompt.studies.config import RunSettings
from softprompt.studies.environment import environment, peak_memory, reset_peak
from softprompt.studies.folder import StudyFolder
from softprompt.studies.plan import Outcome, PlannedRun
from softprompt.tasks.base import Row

OpenBackbone = Callable[[BackboneConfig], Backbone]
Prune = Callable[[Sequence[Mapping[str, Any]]], bool]
"""Told a trial's evaluations so far, each with "step" and "value": whether it is to be given up."""


class Pruned(Exception):  # noqa: N818 - no error
    """A trial was given up."""


@dataclass
class Worker:
    """Does runs one after the other.

    open_backbone  loads what a config describes
    """

    open_backbone: OpenBackbone
    _backbone: tuple[BackboneConfig, Backbone] | None = None
    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _digests: dict[int, dict[str, Any]] = field(default_factory=dict)  # by identity of the lists in _rows

    def backbone(self, config: BackboneConfig) -> Backbone:
        """Loaded once for all runs in a row that are on it: one at a time, as memory may hold no second."""
        if self._backbone is None or self._backbone[0] != config:
            self._backbone = None
            self._backbone = config, self.open_backbone(config)
        return self._backbone[1]

    def rows(self, source: SourceConfig, usual: str) -> list[Row]:
        """Read once. usual: the split of a source that has splits and names none."""
        key = repr((source, usual))
        if key not in self._rows:
            rows: list[Row] = list(source_rows(source, usual))
            self._rows[key], self._digests[id(rows)] = rows, _about(rows)
        return self._rows[key]

    def do(
        self,
        run: PlannedRun,
        folder: StudyFolder,
        *,
        keep_prompt: bool,
        progress: Progress | None = None,
        prune: Prune | None = None,
    ) -> Outcome:
        """Make a run, or go on with it, and write how it ended. Raises whatever goes wrong in it."""
        settings, place = run.settings(), folder.run(run.id)
        if settings.class_tasks is not None:
            return self._in_tasks(run, settings, folder, keep_prompt, progress)
        started = time.perf_counter()
        train, validation = self._training_rows(settings)
        backbone = self.backbone(settings.config.backbone)
        reset_peak(backbone.device)
        config = settings.config
        watcher = _Watcher(place, config.task.main_metric, progress or Silent(), prune)
        facts: dict[str, Any] = {"stage": run.stage, "main_metric": config.task.main_metric}
        concerns: list[str] = []
        try:
            with _concerns_in(concerns):
                tuned = fit(
                    backbone,
                    config.task,
                    config.method,
                    train,
                    validation,
                    recipe=config.recipe,
                    folder=place / "checkpoint",
                    progress=watcher,
                )
        except Pruned:
            last = watcher.evaluations[-1]
            found = {"validation": {config.task.main_metric: last["value"]}}
            facts |= {"status": "pruned", "metrics": found, "steps_made": last["step"]}
            facts["evaluations"] = watcher.evaluations
            return self._ended(run, folder, facts | self._cost(backbone, started), [])
        metrics = dict(tuned.metrics)
        rows = {"train": train, **({} if validation is None else {"validation": validation})}
        if run.stage == "final":
            tests = {"test": config.data.test, **settings.domains}
            for name, source in tests.items():
                if source is not None:
                    rows[name] = self.rows(source, "test")
                    metrics[name] = tuned.evaluate(rows[name])
            if keep_prompt:
                replace(tuned, metrics=metrics).save(place / "prompt", overwrite=True)
        facts |= {
            "status": "finished",
            "metrics": metrics,
            **{name: tuned.recipe.get(name) for name in ("trained_parameters", "learning_rate")},
            "steps_made": tuned.recipe.get("steps_made", 0),
            "best_step": tuned.recipe.get("best_step"),
            "seconds": tuned.recipe.get("seconds", 0.0),
            "rows": {
                name: self._digests.get(id(part)) or _about(part)
                for name, part in rows.items()
                if part is not None
            },
            "evaluations": watcher.evaluations,
            "concerns": concerns,
        }
        return self._ended(run, folder, facts | self._cost(backbone, started), tuned.history)

    def _in_tasks(
        self,
        run: PlannedRun,
        settings: RunSettings,
        folder: StudyFolder,
        keep_prompt: bool,
        progress: Progress | None,
    ) -> Outcome:
        """Classes that come in tasks: tests follow each task, on validation rows where settings are chosen."""
        config, place, started = settings.config, folder.run(run.id), time.perf_counter()
        part = "test" if run.stage == "final" else "validation"
        tested = config.data.test if part == "test" else config.data.validation
        if tested is None:
            raise ValueError(f"class_tasks: data.{part} is missing, on which each task is tested")
        rows = {"train": self.rows(config.data.train, "train"), part: self.rows(tested, part)}
        backbone = self.backbone(config.backbone)
        reset_peak(backbone.device)
        concerns: list[str] = []
        with _concerns_in(concerns):
            found = class_incremental_run(
                backbone,
                config.task,  # type: ignore[arg-type]  # parse_run has looked
                config.method,
                rows["train"],
                rows[part],
                tasks=settings.class_tasks or 1,
                order_seed=config.recipe.seed,
                recipe=config.recipe,
                folder=place / "checkpoint",
                progress=progress or Silent(),
            )
        metrics = {**found.metrics, "accuracy_matrix": found.accuracy, "tasks": found.tasks}
        main = config.task.main_metric
        if run.stage == "final" and keep_prompt:
            found.prompt.save(place / "prompt", overwrite=True)
        facts: dict[str, Any] = {
            "status": "finished",
            "stage": run.stage,
            "main_metric": main,
            # L2P's average accuracy, which is the accuracy over all classes where tasks are of one size.
            "metrics": {part: {main: metrics["final_average"], **metrics}},
            "trained_parameters": found.stages[-1]["trained_parameters"],
            "learning_rate": found.prompt.recipe.get("learning_rate"),
            "steps_made": config.recipe.steps * len(found.tasks),
            "seconds": sum(stage["seconds"] or 0.0 for stage in found.stages),
            "rows": {name: self._digests[id(some)] for name, some in rows.items()},
            "concerns": concerns,
        }
        return self._ended(run, folder, facts | self._cost(backbone, started), [])

    def _ended(
        self,
        run: PlannedRun,
        folder: StudyFolder,
        facts: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> Outcome:
        outcome = folder.end(run.id, facts, history)
        shutil.rmtree(folder.run(run.id) / "checkpoint", ignore_errors=True)
        return outcome

    def _training_rows(self, settings: RunSettings) -> tuple[list[Row], list[Row] | None]:
        data = settings.config.data
        train = self.rows(data.train, "train")
        validation = None if data.validation is None else self.rows(data.validation, "validation")
        if settings.shots is None:
            return train, validation
        [split] = few_shot_splits(
            train, settings.config.task, [settings.shots], [settings.config.recipe.seed]
        )
        # Few-shot validation is as small as the training data, unless rows of their own are given.
        return [train[i] for i in split.train], validation or [train[i] for i in split.validation]

    def _cost(self, backbone: Backbone, started: float) -> dict[str, Any]:
        return {
            "wall_seconds": time.perf_counter() - started,
            "peak_memory": peak_memory(backbone.device),
            "environment": environment(backbone),
        }


@dataclass
class _Watcher:
    """Passes a run's progress on, keeps its evaluations in a file, and gives a trial up."""

    folder: Path
    metric: str
    shown: Progress
    prune: Prune | None
    evaluations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def _file(self) -> Path:
        return self.folder / "evaluations.json"

    def begin(self, steps: int, done: int) -> None:
        # An evaluation is written before the checkpoint of its step: what a resumed run makes again is dropped here.
        known = json.loads(self._file.read_text(encoding="utf-8")) if done and self._file.exists() else []
        self.evaluations = [entry for entry in known if entry["step"] <= done]
        self.shown.begin(steps, done)

    def update(self, record: Record) -> None:
        self.shown.update(record)

    def report(self, record: Record, *, is_best: bool) -> None:
        self.shown.report(record, is_best=is_best)
        if self.metric not in record.metrics:
            return
        self.evaluations = [entry for entry in self.evaluations if entry["step"] < record.step]
        self.evaluations.append({"step": record.step, "value": record.metrics[self.metric]})
        write_text(self._file, json.dumps(self.evaluations))
        if self.prune is not None and self.prune(self.evaluations):
            raise Pruned

    def end(self) -> None:
        self.shown.end()


@contextlib.contextmanager
def _concerns_in(concerns: list[str]) -> Iterator[None]:
    """The library's warnings go into the list, others where they go anyway."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SoftpromptWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, SoftpromptWarning):
            concerns.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _about(rows: Sequence[Row]) -> dict[str, Any]:
    text = json.dumps([dict(row) for row in rows], sort_keys=True, default=_of_value)
    return {"count": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _of_value(value: Any) -> str:
    """What a value that is no JSON is known by: its bytes where it has them, since repr may cut them short."""
    content = value if isinstance(value, bytes) else getattr(value, "tobytes", lambda: repr(value).encode())()
    return hashlib.sha256(content).hexdigest()
