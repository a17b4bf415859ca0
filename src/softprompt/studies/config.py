"""The file that describes a study: what all runs share, the axes that they differ in, what is chosen on validation.

title: Methods on reviews
backbone: smollm2-135m-instruct                 # the words of `softprompt train`: what all runs share
task: {name: text-classification, template: "{text}\\nMood:", labels: {neg: " bad", pos: " good"}}
data: {train: multiemo-products, validation: multiemo-products, test: multiemo-products}
recipe: {steps: 100}
axes:                                           # every combination is run
  method: [zero-shot, prompt-tuning, {name: lora, rank: 4}]     # values of one key
  domain: {hotels: {data.test: multiemo-hotels}, ...}           # or options by name: what each of them changes
seeds: [0, 1, 2]
select: {recipe.learning_rate: [0.01, 0.03]}    # chosen on validation, for each combination by itself
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from softprompt.protocols.base_to_new import base_and_new
from softprompt.protocols.class_incremental import Answers, Logits
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.run_config import (
    RunConfig,
    SourceConfig,
    as_mapping,
    check_keys,
    field_names,
    parse_cache,
    parse_config,
    parse_yaml,
    parsed,
    written_out,
)
from softprompt.tasks import ImageTextClassification

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
_RUN_KEYS = (
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
_OWN_KEYS = (
    "title",
    "axes",
    "runs",
    "seeds",
    "select",
    "search",
    "compare",
    "keep_prompts",
    "ensembles",
    "together",
    "cache_features",
    "full",
)


@dataclass(frozen=True, config=_STRICT)
class SearchConfig:
    """How settings are chosen on validation."""

    by: Literal["grid", "optuna"] = "grid"
    """Every combination of the settings, or Optuna's tree-structured Parzen estimator."""
    seeds: tuple[int, ...] = (1000,)
    """Of the runs that settings are chosen by; the final runs have others. Optuna takes one."""
    trials: int = Field(default=20, ge=1)
    """Optuna: settings that are tried for each combination of the axes."""
    at_once: int = Field(default=1, ge=1)
    """Optuna: trials drawn from the same knowledge, so that as many workers have something to do."""
    prune: bool = True
    """Optuna: stop a trial whose validation metric is below the median of the earlier ones at the same step."""
    seed: int = Field(default=0, ge=0)
    """Of Optuna's own draws."""

    @model_validator(mode="after")
    def _a_trial_is_one_run(self) -> SearchConfig:
        if self.by == "optuna" and len(self.seeds) != 1:
            raise ValueError(
                f"seeds are {list(self.seeds)}, and a trial of Optuna is one run: name one, or take by: grid"
            )
        return self


@dataclass(frozen=True, config=_STRICT)
class Range:
    """Numbers between two ends, both included; whole ones where both ends are."""

    low: int | float
    high: int | float
    log: bool = False
    """Drawn evenly in the logarithm."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low is {self.low} and high is {self.high}: low must be less, above 0 with log")
        return self


Choices = tuple[Any, ...] | Range
Select = Mapping[str, Choices]


@dataclasses.dataclass(frozen=True)
class Option:
    """One value of an axis: what it changes, and what it has of its own in place of the study's.

    select, seeds: None: the study's.
    """

    changes: Mapping[str, Any]
    select: Select | None = None
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as it was read; see the top of this file.

    shared        what all runs have in common
    axes          axis -> label -> option, in the file's order
    runs          named runs beside the grid, as options
    compare       the axis whose options are the lines of the tables: what is compared
    keep_prompts  whether final runs leave their prompt in their folder
    ensembles     whether the prompts of a combination's seeds are judged together too
    together      so many runs of one method are trained in one batch
    cache_features  what lies below the first trained weight is computed once for each row; or a folder where it is kept
    """

    title: str
    shared: Mapping[str, Any]
    axes: Mapping[str, Mapping[str, Option]]
    runs: Mapping[str, Option]
    seeds: tuple[int, ...]
    select: Select
    search: SearchConfig
    compare: str
    keep_prompts: bool
    together: int
    cache_features: bool | str
    values: Mapping[str, Any] = dataclasses.field(repr=False)
    ensembles: bool = False


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
            values["rehearsal"] = dataclasses.asdict(self.rehearsal)
        if self.base_to_new:
            values["base_to_new"] = True
        if self.domains:
            values["domains"] = {name: source.as_dict() for name, source in self.domains.items()}
        return values


def read_study(path: Path, *, full: bool = False) -> Study:
    """The study that a YAML file describes; full: with its key `full` merged over it.

    Raises FileNotFoundError, and ValueError for what is no YAML, an unknown key and a value that does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path}; expected a YAML file that describes one")
    values = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    try:
        values = as_mapping(values, "a study")
        if full:
            if "full" not in values:
                raise ValueError("the study has no key 'full'")
            values = _with_variant(values, as_mapping(values["full"], "full"))
        values.pop("full", None)
        return parse_study(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_study(values: Mapping[str, Any]) -> Study:
    """Raises ValueError for an unknown key and a value that does not fit; the runs themselves are checked by `plan`."""
    check_keys(values, [*_RUN_KEYS, *_OWN_KEYS], "")
    for key in ("backbone", "task", "method"):
        if isinstance(values.get(key), list):
            raise ValueError(f"{key} is a list: put it under axes, as in axes: {{{key}: [...]}}")
    axes = {
        str(name): _axis(str(name), axis)
        for name, axis in as_mapping(values.get("axes") or {}, "axes").items()
    }
    runs = {
        str(name): _option(as_mapping(run, f"runs.{name}"), f"runs.{name}")
        for name, run in as_mapping(values.get("runs") or {}, "runs").items()
    }
    search = parsed(SearchConfig, as_mapping(values.get("search") or {}, "search"), "search")
    seeds = _seeds(values.get("seeds", [0]), "seeds")
    select = _select(values.get("select"), "select")
    own = [option for options in (*axes.values(), runs) for option in options.values()]
    if select or any(option.select for option in own):
        used = {*seeds, *(seed for option in own for seed in option.seeds or ())}
        if both := used & set(search.seeds):
            raise ValueError(
                f"the seeds {sorted(both)} are in seeds and in search.seeds: a final run needs a fresh seed, "
                "or its score is one that it was chosen by"
            )
    compare = values.get("compare") or ("method" if "method" in axes else next(iter(axes), "method"))
    if axes and compare not in axes:
        raise ValueError(f"compare is {compare!r}, expected one of the axes {list(axes)}")
    keep, cached = _flag(values, "keep_prompts", True), parse_cache(values.get("cache_features", False))
    together = _count(values.get("together"), "together", "of runs in one batch") or 1
    ensembles = _flag(values, "ensembles", False)
    if ensembles and not keep:
        raise ValueError("ensembles is true and keep_prompts false: kept prompts are what answers together")
    shared = {key: value for key, value in values.items() if key in _RUN_KEYS}
    title = str(values.get("title") or "A study")
    return Study(
        title,
        shared,
        axes,
        runs,
        seeds,
        select,
        search,
        compare,
        keep,
        together,
        cached,
        dict(values),
        ensembles,
    )


def parse_run(values: Mapping[str, Any]) -> RunSettings:
    """Raises ValueError as `parse_config` does, and for shots, class_tasks, base_to_new and domains that do not fit."""
    plain = dict(values)
    domains = plain.pop("domains", None) or {}
    shots = _count(plain.pop("shots", None), "shots", "of rows for each class")
    class_tasks = _count(plain.pop("class_tasks", None), "class_tasks", "of tasks that the classes come in")
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
    halves = _flag(plain, "base_to_new", False)
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
        if config.task.name not in ("image-classification", "sequence-classification"):
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
    if not isinstance(config.task, ImageTextClassification):
        raise ValueError(
            f"base_to_new needs classes that are told by their names: task image-text-classification, "
            f"not {config.task.name}"
        )
    base_and_new(config.task.labels)
    if config.data.validation is not None:
        raise ValueError(
            "base_to_new with data.validation: new classes have no validation rows, so nothing is chosen on any; "
            "leave data.validation and select out, and give the settings"
        )
    if config.data.test is None:
        raise ValueError("base_to_new: data.test is missing, on whose rows both halves are tested")


def _flag(values: Mapping[str, Any], key: str, usual: bool) -> bool:
    value = values.get(key, usual)
    if not isinstance(value, bool):
        raise ValueError(f"{key} is {value!r}, expected true or false")
    return value


def _count(value: Any, key: str, what: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise ValueError(f"{key} is {value!r}, expected a whole number {what}, 1 or more")
    return value


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values with the changes put in: "dotted.key" or nested, key by key.

    A new task, method or data source takes the place of the old one as a whole; what is no mapping does so anywhere.
    """
    result = written_out(values)
    for dotted, value in changes.items():
        key, _, rest = str(dotted).partition(".")
        old = result.get(key)
        if rest:
            result[key] = merged(old if isinstance(old, Mapping) else {}, {rest: value})
            if key == "data":
                result = written_out(result)
            continue
        value = written_out({key: value})[key]
        is_new = isinstance(value, Mapping) and key != "backbone" and ("name" in value or "source" in value)
        if isinstance(value, Mapping) and isinstance(old, Mapping) and not is_new:
            value = merged(old, value)
        result[key] = value
    return result


def _with_variant(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    # The names below these keys are dotted themselves: an axis, a named run, a setting is replaced as a whole.
    named = {
        key: {**(values.get(key) or {}), **as_mapping(changes[key], f"full.{key}")}
        for key in ("axes", "runs", "select")
        if key in changes
    }
    return merged(values, {key: value for key, value in changes.items() if key not in named}) | named


def _axis(name: str, axis: Any) -> dict[str, Option]:
    place = f"axes.{name}"
    if isinstance(axis, Mapping) and axis:
        return {
            str(label): _option(as_mapping(option, f"{place}.{label}"), f"{place}.{label}")
            for label, option in axis.items()
        }
    if not isinstance(axis, list) or not axis:
        raise ValueError(f"{place} is {axis!r}, expected a list of values or options by name")
    check_keys({name.split(".")[0]: None}, _RUN_KEYS, "axes")
    labelled = {_label(name, value): Option({name: value}) for value in axis}
    if len(labelled) < len(axis):
        raise ValueError(
            f"{place} has two values that read alike, {list(labelled)}: give them names of their own"
        )
    return labelled


def _option(values: Mapping[str, Any], place: str) -> Option:
    changes = {key: value for key, value in values.items() if key not in ("select", "seeds")}
    check_keys({str(key).split(".")[0]: None for key in changes}, _RUN_KEYS, place)
    select = _select(values["select"], f"{place}.select") if "select" in values else None
    seeds = _seeds(values["seeds"], f"{place}.seeds") if "seeds" in values else None
    return Option(changes, select, seeds)


def _label(axis: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    name = value.get("name") or value.get("source")
    settings = [f"{key}={item}" for key, item in value.items() if key not in ("name", "source")]
    return " ".join([*([str(name)] if name else []), *settings]) or axis


def _seeds(value: Any, place: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or not value or len(set(value)) < len(value):
        raise ValueError(f"{place} is {value!r}, expected a list of different whole numbers")
    return tuple(value)


def _select(value: Any, place: str) -> Select:
    found: dict[str, Choices] = {}
    for key, choices in as_mapping(value or {}, place).items():
        if isinstance(choices, list) and choices:
            found[key] = tuple(choices)
        elif isinstance(choices, Mapping):
            check_keys(choices, field_names(Range), f"{place}.{key}")
            found[key] = parsed(Range, choices, f"{place}.{key}")
        else:
            raise ValueError(f"{place}.{key} is {choices!r}, expected a list, or a range {{low, high, log}}")
    return found


def cells(study: Study) -> list[tuple[dict[str, str], Sequence[Option]]]:
    """The combinations of the axes, then the named runs: labels by axis, and the options that make them up."""
    found: list[tuple[dict[str, str], Sequence[Option]]] = [({}, ())] if study.axes or not study.runs else []
    for axis, options in study.axes.items():
        found = [
            ({**labels, axis: label}, (*chosen, option))
            for labels, chosen in found
            for label, option in options.items()
        ]
    return found + [({study.compare: name}, (option,)) for name, option in study.runs.items()]
