"""What one run of a study depends on, and how its words are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, get_args

from softprompt.fitting.run_config import RunConfig, SourceConfig, as_mapping, parse_config, parsed
from softprompt.protocols.base_to_new import base_and_new
from softprompt.protocols.class_incremental import Answers, Logits
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.store.identity import settings_of

RUN_KEYS = (
    "backbone",
    "task",
    "method",
    "data",
    "recipe",
    "shots",
    "class_tasks",
    "class_logits",
    "class_order",
    "class_answers",
    "rehearsal",
    "base_to_new",
    "domains",
)
Order = Literal["seed", "natural"]
_CLASS_CHOICES = {"class_logits": Logits, "class_order": Order, "class_answers": Answers}
"""Of runs whose classes come in tasks; the first of each is the default."""


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """All that one run depends on.

    shots        train on so many rows of each class, drawn by the run's seed; None: on all rows
    class_tasks  the classes come in so many tasks; None: all at once
    class_logits those that compete in training, as in `class_incremental_run`
    class_order  seed: drawn by the run's; natural: that of the task's labels
    class_answers  those that a test allows, as in `class_incremental_run`
    rehearsal    rows of earlier tasks that are trained on again; None: none are
    base_to_new  train on the first half of the classes, test each half among its own, as in `base_to_new_runs`
    domains      other test data by name, on which the trained prompt is evaluated too
    """

    config: RunConfig
    shots: int | None = None
    class_tasks: int | None = None
    class_logits: Logits = "present"
    class_order: Order = "seed"
    class_answers: Answers = "all"
    rehearsal: Rehearsal | None = None
    base_to_new: bool = False
    domains: Mapping[str, SourceConfig] = dataclasses.field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `parse_run` reads back as the same run."""
        values = self.config.as_dict()
        if self.shots is not None:
            values["shots"] = self.shots
        if self.class_tasks is not None:
            values["class_tasks"] = self.class_tasks
        for key, choices in _CLASS_CHOICES.items():
            if (choice := getattr(self, key)) != get_args(choices)[0]:
                values[key] = choice
        if self.rehearsal is not None:
            values["rehearsal"] = settings_of(self.rehearsal)
        if self.base_to_new:
            values["base_to_new"] = True
        if self.domains:
            values["domains"] = {name: source.as_dict() for name, source in self.domains.items()}
        return values


def parse_run(values: Mapping[str, Any]) -> RunSettings:
    """Raises ValueError as `parse_config` does, and for shots, class_tasks, base_to_new and domains that do not fit."""
    plain = dict(values)
    domains = plain.pop("domains", None) or {}
    shots = count(plain.pop("shots", None), "shots", "of rows for each class")
    class_tasks = count(plain.pop("class_tasks", None), "class_tasks", "of tasks that the classes come in")
    of_tasks: dict[str, Any] = {}
    for key, choices in _CLASS_CHOICES.items():
        usual, *_ = allowed = get_args(choices)
        of_tasks[key] = plain.pop(key, usual)
        if of_tasks[key] not in allowed or (class_tasks is None and of_tasks[key] != usual):
            raise ValueError(
                f"{key} is {of_tasks[key]!r}, expected one of {list(allowed)}, beside class_tasks"
            )
    if (memory := plain.pop("rehearsal", None)) is not None:
        if class_tasks is None:
            raise ValueError("rehearsal is there without class_tasks: it repeats rows of earlier tasks")
        of_tasks["rehearsal"] = parsed(Rehearsal, as_mapping(memory, "rehearsal"), "rehearsal")
    halves = flag(plain, "base_to_new", False)
    plain.pop("base_to_new", None)
    sources = {}
    for name, source in as_mapping(domains, "domains").items():
        source = {"source": source} if isinstance(source, str) else source
        sources[str(name)] = parsed(SourceConfig, as_mapping(source, f"domains.{name}"), f"domains.{name}")
    config = parse_config(plain)
    if class_tasks is not None:
        if shots is not None or sources:
            raise ValueError(
                "class_tasks is there together with shots or domains: it takes all rows of one data set"
            )
        if config.task.labelling is None or config.task.outputs is None:
            raise ValueError(
                f"class_tasks needs a head over all classes: task image-classification or sequence-classification, "
                f"not {config.task.name}"
            )
    if halves:
        _check_halves(config, class_tasks is not None or bool(sources))
    return RunSettings(config, shots, class_tasks, base_to_new=halves, domains=sources, **of_tasks)


def _check_halves(config: RunConfig, others: bool) -> None:
    if others:
        raise ValueError("base_to_new is there together with class_tasks or domains: it judges two halves")
    if config.task.labelling is None or not config.task.compares_texts:
        raise ValueError(
            f"base_to_new needs classes that are told by their names: task image-text-classification, "
            f"not {config.task.name}"
        )
    base_and_new(config.task.labelling.labels)
    if config.data.validation is not None:
        raise ValueError(
            "base_to_new with data.validation: new classes have no validation rows, so nothing is chosen on any; "
            "leave data.validation and select out, and give the settings"
        )
    if config.data.test is None:
        raise ValueError("base_to_new: data.test is missing, on whose rows both halves are tested")


def flag(values: Mapping[str, Any], key: str, usual: bool) -> bool:
    """The truth value of a key, `usual` where it is missing. Raises ValueError for anything else."""
    value = values.get(key, usual)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected true or false")
    return value


def count(value: Any, key: str, what: str) -> int | None:
    """The whole number above 0 that `value` is, or None. Raises ValueError, told as "a whole number {what}"."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{key} is {value!r}, expected a whole number {what}, 1 or more")
    return value
