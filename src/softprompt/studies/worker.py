"""What does one run: training, the reading of the test rows, and what is written of both."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.data import Row
from softprompt.errors import TrainingDiverged
from softprompt.evaluation import evaluate
from softprompt.features.cache import FeatureCache, recall, with_features
from softprompt.fitting.many import fit_many_data
from softprompt.fitting.one import fit_data
from softprompt.fitting.preparation import Data, room_of
from softprompt.protocols.class_incremental import class_incremental_run
from softprompt.protocols.ensembling import PromptEnsemble
from softprompt.studies.environment import environment, peak_memory, reset_peak
from softprompt.studies.folder import StudyFolder
from softprompt.studies.halves import MAIN, in_halves
from softprompt.studies.run_settings import RunSettings
from softprompt.studies.runs import Outcome, PlannedRun
from softprompt.studies.supplies import OpenBackbone, Supplies
from softprompt.studies.watching import Prune, Pruned, Watcher, concerns_in
from softprompt.training.progress import Progress, Silent
from softprompt.tuned import TunedPrompt, load


@dataclass(frozen=True)
class _Start:
    """Where a run began. The processor's time says what it takes on a machine that has other work too.

    memory: what stood before it, as `reset_peak` says it
    """

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)
    memory: Mapping[str, int] = field(default_factory=dict)

    def passed(self, runs: int = 1) -> tuple[float, float]:
        """Seconds since, of one of so many runs: by the clock, and of the processor."""
        return (time.perf_counter() - self.wall) / runs, (time.process_time() - self.cpu) / runs


class Worker:
    """Does runs one after the other, with supplies that it keeps."""

    def __init__(self, open_backbone: OpenBackbone) -> None:
        """open_backbone: loads what a config describes."""
        self._supplies = Supplies(open_backbone)

    def do(
        self,
        run: PlannedRun,
        folder: StudyFolder,
        *,
        keep_prompt: bool,
        cache_features: bool | str = False,
        progress: Progress | None = None,
        prune: Prune | None = None,
    ) -> Outcome:
        """Make a run, or go on with it, and write how it ended. Raises whatever goes wrong in it."""
        settings, place = run.settings(), folder.run(run.id)
        if settings.class_tasks is not None:
            return self._in_tasks(run, settings, folder, keep_prompt, cache_features, progress)
        if settings.base_to_new:
            return self._in_halves(run, settings, folder, progress)
        started = _Start()
        config = settings.config
        data = self._supplies.data(settings, FeatureCache.of(cache_features))
        backbone = self._supplies.backbone(config.backbone)
        started = replace(started, memory=reset_peak(backbone.device))
        watcher = Watcher(place, config.task.main_metric, progress or Silent(), prune)
        concerns: list[str] = []
        began = time.perf_counter()
        try:
            with concerns_in(concerns):
                tuned = fit_data(
                    backbone,
                    config.task,
                    config.method,
                    config.recipe,
                    data,
                    watcher,
                    folder=place / "checkpoint",
                    features=self._supplies.features(config.backbone),
                )
        except Pruned:
            last = watcher.evaluations[-1]
            facts = {
                "status": "pruned",
                "stage": run.stage,
                "main_metric": config.task.main_metric,
                "metrics": {"validation": {config.task.main_metric: last["value"]}},
                "steps_made": last["step"],
                "evaluations": watcher.evaluations,
            }
            return self._ended(run, folder, facts | self._cost(backbone, started, watcher.times), [])
        if not watcher.began:  # nothing to train: it was evaluated, or searched for
            watcher.times["evaluation"] += time.perf_counter() - began
        return self._finish(run, folder, data, tuned, watcher, concerns, started, keep_prompt)

    def do_together(
        self,
        runs: Sequence[PlannedRun],
        folder: StudyFolder,
        *,
        keep_prompt: bool,
        cache_features: bool | str = False,
        progress: Progress | None = None,
    ) -> list[Outcome | TrainingDiverged]:
        """Make runs of one of the `batches_of` a study in one pass, each as if alone, and write how each ended.

        One that diverged is not written: the error stands in its place. Raises whatever else goes wrong in any of them; those
        that ended before it stay ended.
        """
        started = _Start()
        every = [run.settings() for run in runs]
        config = every[0].config
        data = self._supplies.data(every[0], FeatureCache.of(cache_features))
        backbone = self._supplies.backbone(config.backbone)
        started = replace(started, memory=reset_peak(backbone.device))
        shown = progress or Silent()
        places = [folder.run(run.id) for run in runs]
        watchers = [Watcher(place, config.task.main_metric, shown) for place in places]
        concerns: list[str] = []
        with concerns_in(concerns):
            learned = fit_many_data(
                backbone,
                config.task,
                [(settings.config.method, settings.config.recipe) for settings in every],
                data,
                watchers,
                [place / "checkpoint" for place in places],
                features=self._supplies.features(config.backbone),
            )
        share = started.passed(len(runs))
        outcomes: list[Outcome | TrainingDiverged] = []
        for run, one, watcher in zip(runs, learned, watchers, strict=True):
            if one.diverged is not None:
                outcomes.append(one.diverged)
                continue
            own = [*concerns, *one.concerns]
            begun = _Start(time.perf_counter() - share[0], time.process_time() - share[1], started.memory)
            outcomes.append(
                self._finish(run, folder, data, one.tuned, watcher, own, begun, keep_prompt, len(runs))
            )
        return outcomes

    def _finish(
        self,
        run: PlannedRun,
        folder: StudyFolder,
        data: Data,
        tuned: TunedPrompt,
        watcher: Watcher,
        concerns: Sequence[str],
        started: _Start,
        keep_prompt: bool,
        together: int = 1,
    ) -> Outcome:
        """Judge what a run learned on the test data, if it is a final one, and write how it ended."""
        settings = run.settings()
        metrics = dict(tuned.metrics)
        rows = {"train": data.train, **({} if data.validation is None else {"validation": data.validation})}
        if run.stage == "final":
            tests = {"test": settings.config.data.test, **settings.domains}
            for name, source in tests.items():
                if source is not None:
                    rows[name] = self._supplies.rows(source, "test")
                    began = time.perf_counter()
                    metrics[name] = self._evaluated(tuned, rows[name], settings, data.cache)
                    watcher.times["evaluation"] += time.perf_counter() - began
            if keep_prompt:
                identity = tuned.identity or self._supplies.identity(settings.config.backbone)
                kept = replace(tuned, metrics=metrics, identity=identity)
                kept.save(folder.run(run.id) / "prompt", overwrite=True)
        facts = {
            "status": "finished",
            "stage": run.stage,
            "main_metric": settings.config.task.main_metric,
            "metrics": metrics,
            **{name: tuned.recipe.get(name) for name in ("trained_parameters", "learning_rate")},
            "steps_made": tuned.recipe.get("steps_made", 0),
            "best_step": tuned.recipe.get("best_step"),
            "seconds": tuned.recipe.get("seconds", 0.0),
            "rows": {name: self._supplies.about(part) for name, part in rows.items()},
            "evaluations": watcher.evaluations,
            "concerns": list(concerns),
            "together": together,
            "tensors": {name: list(tensor.shape) for name, tensor in tuned.module.state_dict().items()},
        }
        cost = self._cost(tuned.backbone, started, watcher.times)
        return self._ended(run, folder, facts | cost, tuned.history)

    def _evaluated(
        self, tuned: TunedPrompt, rows: Sequence[Row], settings: RunSettings, cache: FeatureCache | None
    ) -> dict[str, Any]:
        """What `tuned.evaluate` gives, of rows that are encoded once for all runs."""
        if tuned.task != settings.config.task:  # a search wrote words into its template
            return tuned.evaluate(rows)
        room = room_of(tuned.module, tuned.max_tokens)
        encodings = self._supplies.encodings(settings)
        encoded = encodings.of(rows, tuned.encoder, room)
        if cache is not None:
            backbone, layers = (
                self._supplies.backbone(settings.config.backbone),
                tuned.method.frozen_layers(tuned.backbone.spec),
            )
            encoded = encodings.kept(
                ("features", layers), encoded, lambda: with_features(backbone, encoded, layers, cache)
            )
            if tuned.module.reads is not None:
                recall(tuned.model.features, encoded, tuned.module.reads, cache)
        return evaluate(tuned.model, tuned.task, tuned.encoder, rows, encoded=encoded)

    def _in_tasks(
        self,
        run: PlannedRun,
        settings: RunSettings,
        folder: StudyFolder,
        keep_prompt: bool,
        cache_features: bool | str,
        progress: Progress | None,
    ) -> Outcome:
        """Classes that come in tasks: tests follow each task, on validation rows where settings are chosen."""
        config, place, started = settings.config, folder.run(run.id), _Start()
        part = "test" if run.stage == "final" else "validation"
        tested = config.data.test if part == "test" else config.data.validation
        if tested is None:
            raise ValueError(f"class_tasks: data.{part} is missing, on which each task is tested")
        sources = {"train": config.data.train, part: tested}
        rows = {name: self._supplies.rows(source, name) for name, source in sources.items()}
        backbone = self._supplies.backbone(config.backbone)
        started = replace(started, memory=reset_peak(backbone.device))
        watcher = Watcher(place, config.task.main_metric, progress or Silent())
        concerns: list[str] = []
        with concerns_in(concerns):
            found = class_incremental_run(
                backbone,
                config.task,  # type: ignore[arg-type]  # parse_run has looked
                config.method,
                rows["train"],
                rows[part],
                tasks=settings.class_tasks or 1,
                order_seed=config.recipe.seed if settings.class_order == "seed" else None,
                recipe=config.recipe,
                logits=settings.class_logits,
                answers=settings.class_answers,
                rehearsal=settings.rehearsal,
                folder=place / "checkpoint",
                cache_features=cache_features,
                progress=watcher,
            )
        made = found.stages[len(found.stages) - watcher.began :]  # by this process
        watcher.times["evaluation"] = sum(stage["test_seconds"] for stage in made)
        task: Any = config.task
        commonest = max(Counter(map(task.read_label, rows[part])).values())
        metrics = {
            **found.metrics,
            "accuracy_matrix": found.accuracy,
            "tasks": found.tasks,
            "majority_accuracy": commonest / len(rows[part]),
        }
        if chosen := [stage["chosen"] for stage in found.stages if "chosen" in stage]:
            metrics["chosen"] = chosen  # how often each prompt of the pool was, by task
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
            "rows": {name: self._supplies.about(some) for name, some in rows.items()},
            "concerns": concerns,
        }
        history = [
            {**record, "task": t, "step": t * config.recipe.steps + record["step"]}
            for t, stage in enumerate(found.stages)
            for record in stage["history"]
        ]
        return self._ended(run, folder, facts | self._cost(backbone, started, watcher.times), history)

    def as_ensemble(self, runs: Sequence[PlannedRun], folder: StudyFolder) -> dict[str, Any]:
        """The main metric of the runs' prompts as an ensemble on their test rows, by rule, beside the members' mean and best.

        Raises ValueError for prompts that cannot answer together, see `PromptEnsemble`.
        """
        config = runs[0].settings().config
        backbone = self._supplies.backbone(config.backbone)
        test = self._supplies.rows(config.data.test, "test")  # type: ignore[arg-type]  # members have test rows
        prompts = [load(folder.run(run.id) / "prompt", backbone) for run in runs]
        found, metric = PromptEnsemble(prompts).evaluate(test), config.task.main_metric
        return {
            "metric": metric,
            **{rule: metrics[metric] for rule, metrics in found.ensemble.items()},
            "mean": found.mean[metric],
            "best": found.members[found.best][metric],
        }

    def _in_halves(
        self, run: PlannedRun, settings: RunSettings, folder: StudyFolder, progress: Progress | None
    ) -> Outcome:
        """Some classes are learned, others told by their names: both are tested."""
        data, started = settings.config.data, _Start()
        train, test = self._supplies.rows(data.train, "train"), self._supplies.rows(data.test, "test")  # type: ignore[arg-type]  # parse_run has looked
        backbone = self._supplies.backbone(settings.config.backbone)
        started = replace(started, memory=reset_peak(backbone.device))
        place = folder.run(run.id)
        watcher = Watcher(place, MAIN, progress or Silent())
        concerns: list[str] = []
        with concerns_in(concerns):
            found, history = in_halves(backbone, settings, train, test, place / "checkpoint", watcher)
        watcher.times["evaluation"] = found.pop("test_seconds")
        facts = {
            "status": "finished",
            "stage": run.stage,
            **found,
            "rows": {"train": self._supplies.about(train), "test": self._supplies.about(test)},
            "concerns": concerns,
        }
        return self._ended(run, folder, facts | self._cost(backbone, started, watcher.times), history)

    def _ended(
        self,
        run: PlannedRun,
        folder: StudyFolder,
        facts: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
    ) -> Outcome:
        parameters = self._supplies.parameters(run.settings().config.backbone)
        outcome = folder.end(run.id, {**facts, "backbone_parameters": parameters}, history)
        shutil.rmtree(folder.run(run.id) / "checkpoint", ignore_errors=True)
        return outcome

    def _cost(self, backbone: Backbone, started: _Start, times: Mapping[str, float]) -> dict[str, Any]:
        wall, cpu = started.passed()
        return {
            "wall_seconds": wall,
            "cpu_seconds": cpu,
            "times": dict(times),
            "peak_memory": {**peak_memory(backbone.device), **started.memory},
            "environment": environment(backbone),
        }
