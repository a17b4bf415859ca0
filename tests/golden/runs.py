"""How the golden files are written and compared: training that breaks off, and identities as plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

import softprompt as sp
from softprompt import studies
from tests.golden.cases import HERE, TOGETHER, Case
from tests.golden.models import backbone


class Seen:
    """Notes from which step on a run was trained, and breaks it off after a step if it is told to."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop
        self.begun: list[int] = []
        self.steps: list[int] = []

    def begin(self, steps: int, done: int) -> None:
        self.begun.append(done)

    def update(self, record: Any) -> None:
        self.steps.append(record.step)
        if record.step == self.stop:
            raise KeyboardInterrupt

    def report(self, record: Any, *, is_best: bool) -> None:
        pass

    def end(self) -> None:
        pass


def trained(case: Case, folder: Path | None = None, seen: Seen | None = None) -> sp.TunedPrompt:
    """The case's prompt; goes on from the checkpoint in the folder."""
    train, validation = case.data
    return sp.fit(
        backbone(case.backbone),
        case.task,
        case.method,
        train,
        validation,
        recipe=case.recipe(),
        folder=folder,
        progress=seen or False,
    )


def trained_together(
    case: Case, folder: Path | None = None, seen: Sequence[Seen] | None = None
) -> list[sp.TunedPrompt]:
    """The runs of TOGETHER on the task and the rows of a case."""
    train, validation = case.data
    return sp.fit_many(
        backbone(case.backbone),
        case.task,
        TOGETHER,
        train,
        validation,
        folder=folder,
        progress=seen or [Seen() for _ in TOGETHER],
    )


def predictions(tuned: sp.TunedPrompt, case: Case) -> list[dict[str, Any]]:
    """What a prompt answers to the rows that its case does not train on."""
    answers = tuned.predict(case.data[1])
    return [
        {"label": answer.label, "probabilities": {k: float(p) for k, p in answer.probabilities.items()}}
        for answer in answers
    ]


def state(tuned: sp.TunedPrompt) -> dict[str, Tensor]:
    """Copies of everything that was learned."""
    return {name: tensor.detach().cpu().clone() for name, tensor in tuned.state().items()}


def checkpoint_identity(folder: Path) -> dict[str, Any]:
    """What the checkpoint in a folder says of the run that it is of."""
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return dict(json.loads(file.metadata()["facts"])["identity"])


def run_ids(path: Path, full: bool) -> list[str]:
    """The ids of all runs of a study file, those included whose settings are chosen: as if all had been equally good.

    What Optuna draws is left out: it is not the same in all its releases, nor to the last bit on all processors.
    """
    study = studies.read_study(path, full=full)
    facts = {"main_metric": "m", "metrics": {"validation": {"m": 0.5}}}
    drawn = study.search.by == "optuna"
    found = studies.plan(study, lambda _: None if drawn else studies.Outcome("finished", facts))
    assert drawn or not found.later
    return list(dict.fromkeys(run.id for run in found.runs if run.trial is None))


def study_files() -> list[Path]:
    """The studies as they stood at the time: that is how the folders of begun ones hold them."""
    return sorted((HERE / "studies").glob("*.yaml"))


class Told:
    """What a study tells: which runs began, from which step on, and how it breaks one off.

    stop: run id -> (how many trainings begin before the one that breaks off, the step after which it does)
    """

    def __init__(self, stop: dict[str, tuple[int, int]] | None = None) -> None:
        self.stop = stop or {}
        self.begun: dict[str, Seen] = {}

    def planned(self, found: Any, folder: Any) -> None:
        pass

    def begins(self, runs: Sequence[Any]) -> Seen:
        [run] = runs
        self.begun[run.id] = seen = _Breaking(*self.stop[run.id]) if run.id in self.stop else Seen()
        return seen

    def ended(self, run: Any, outcome: Any) -> None:
        pass

    def note(self, message: str) -> None:
        raise AssertionError(message)


class _Breaking(Seen):
    def __init__(self, before: int, step: int) -> None:
        super().__init__()
        self._before, self._step = before, step

    def begin(self, steps: int, done: int) -> None:
        super().begin(steps, done)
        self.stop = self._step if len(self.begun) > self._before else None


def worker() -> studies.Worker:
    return studies.Worker(lambda config: backbone(config.name))


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To what a few steps of float32 make of another order of additions."""
    assert {name: tensor.shape for name, tensor in found.items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    for name, tensor in found.items():
        largest = expected[name].abs().max().item() if tensor.is_floating_point() and tensor.numel() else 0.0
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-3 * largest, msg=name)


def kinds() -> list[type]:
    """The classes of which ids and identities are made."""
    from softprompt.fitting.run_config import BackboneConfig, DataConfig, SourceConfig
    from softprompt.store import BackboneIdentity
    from softprompt.tasks import TASKS

    own = [sp.Recipe, sp.Rehearsal, sp.ImageRule, BackboneIdentity, BackboneConfig, DataConfig, SourceConfig]
    return [*sp.methods().values(), *TASKS.values(), *own]


def fields() -> dict[str, list[str]]:
    """Their fields, by the name of the class."""
    return {kind.__name__: [field.name for field in dataclasses.fields(kind)] for kind in kinds()}
