"""One training and one test: the common part of the plain run, few-shot learning and domain shift."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from softprompt.binding import room_of
from softprompt.data import Row
from softprompt.errors import TrainingDiverged
from softprompt.evaluation import evaluate
from softprompt.features.encoded import FrozenPart, encoded_rows
from softprompt.fitting.many import Learned, fit_many_data
from softprompt.fitting.one import fit_data
from softprompt.fitting.preparation import Data
from softprompt.protocols.base import Experiment, Judge, Protocol, ProtocolResult
from softprompt.protocols.splits import draw_split
from softprompt.tuned import TunedPrompt


class FitAndTest(Protocol):
    """Trains once and tests the prompt on every test set; a subclass may draw the training rows and add test sets."""

    together = True

    def measure(self, experiment: Experiment) -> ProtocolResult:
        data = self._data(experiment)
        tuned = fit_data(
            experiment.backbone,
            experiment.task,
            experiment.method,
            experiment.recipe,
            data,
            experiment.progress,
            folder=experiment.folder,
            features=experiment.bench.features,
        )
        return self._judged(experiment, data, tuned)

    def train_together(self, experiments: Sequence[Experiment]) -> list[Judge | TrainingDiverged]:
        first = experiments[0]
        data = self._data(first)
        learned = fit_many_data(
            first.backbone,
            first.task,
            [(one.method, one.recipe) for one in experiments],
            data,
            [one.progress for one in experiments],
            [one.folder for one in experiments],
            features=first.bench.features,
        )
        return [self._judge(one, data, found) for one, found in zip(experiments, learned, strict=True)]

    def _judge(self, experiment: Experiment, data: Data, learned: Learned) -> Judge | TrainingDiverged:
        if learned.diverged is not None:
            return learned.diverged

        def judge() -> ProtocolResult:
            result = self._judged(experiment, data, learned.tuned)
            return replace(result, concerns=[*learned.concerns, *result.concerns])

        return judge

    def _data(self, experiment: Experiment) -> Data:
        """The training rows, and the rows that choose the best checkpoint."""
        train, validation, shots = experiment.train, experiment.validation, self.draws()
        if shots is not None:
            train, drawn = drawn_rows(experiment, shots)
            # Few-shot validation is as small as the training data, unless rows of their own are given.
            validation = validation or drawn
        return Data(train, validation, experiment.cache, experiment.bench.encodings)

    def _judged(self, experiment: Experiment, data: Data, tuned: TunedPrompt) -> ProtocolResult:
        rows: dict[str, Sequence[Row]] = {"train": data.train}
        if data.validation is not None:
            rows["validation"] = data.validation
        metrics = dict(tuned.metrics)
        concerns: list[str] = []
        seconds = 0.0
        tests = {} if experiment.test is None else {"test": experiment.test}
        tests |= {name: experiment.bench.read(source, "test") for name, source in self.sources().items()}
        for name, part in tests.items():
            began = time.perf_counter()
            metrics[name] = evaluated(tuned, part, experiment)
            concerns += tuned.task.concerns_about(metrics[name], name)
            seconds += time.perf_counter() - began
        how = tuned.recipe
        return ProtocolResult(
            main_metric=experiment.task.main_metric,
            metrics=metrics,
            rows=rows | tests,
            prompt=replace(tuned, metrics=metrics),
            history=tuned.history,
            trained_parameters=how.get("trained_parameters"),
            learning_rate=how.get("learning_rate"),
            steps_made=how.get("steps_made", 0),
            best_step=how.get("best_step"),
            seconds=how.get("seconds", 0.0),
            test_seconds=seconds,
            concerns=concerns,
        )


def drawn_rows(experiment: Experiment, shots: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """`shots` rows of each class to train on and as many others to validate on, drawn by the recipe's seed."""
    rows, task, seed = experiment.train, experiment.task, experiment.recipe.seed

    def draw() -> tuple[list[Row], list[Row]]:
        split = draw_split(rows, task, shots, seed)
        return [rows[i] for i in split.train], [rows[i] for i in split.validation]

    found: tuple[Sequence[Row], Sequence[Row]] = experiment.bench.drawn(repr((task, shots, seed)), rows, draw)
    return found


def evaluated(tuned: TunedPrompt, rows: Sequence[Row], experiment: Experiment) -> Mapping[str, Any]:
    """The result of `tuned.evaluate`, with rows that are encoded once for all experiments on the bench."""
    if tuned.task != experiment.task:  # a search wrote words into its template
        return evaluate(tuned.model, tuned.task, tuned.encoder, rows)
    frozen = FrozenPart(
        backbone=experiment.backbone,
        cache=experiment.cache,
        layers=tuned.method.frozen_layers(tuned.backbone.spec),
        reads=tuned.module.reads,
        row_features=tuned.model.features,
    )
    room = room_of(tuned.module, tuned.max_tokens)
    encoded = encoded_rows(rows, tuned.encoder, room, frozen, encodings=experiment.bench.encodings)
    return evaluate(tuned.model, tuned.task, tuned.encoder, rows, encoded=encoded)
