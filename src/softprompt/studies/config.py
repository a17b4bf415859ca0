"""The file that describes a study: settings of all runs, axes in which runs differ, settings chosen on validation.

title: Methods on reviews
backbone: smollm2-135m-instruct                 # the keys of `softprompt train`, for all runs
task: {name: text-classification, template: "{text}\\nMood:", labels: {neg: " bad", pos: " good"}}
data: {train: multiemo-products, validation: multiemo-products, test: multiemo-products}
recipe: {steps: 100}
protocol: {name: few-shot, shots: 16}           # how a run is measured; by default, one training and one test
axes:                                           # every combination is run
  method: [zero-shot, prompt-tuning, {name: lora, rank: 4}]     # values of one key
  domain: {hotels: {data.test: multiemo-hotels}, ...}           # or options by name: what each of them changes
seeds: [0, 1, 2]
select: {recipe.learning_rate: [0.01, 0.03]}    # chosen on validation rows, for each combination

"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from softprompt.errors import SoftpromptWarning, shown
from softprompt.fitting.run_config import parse_cache
from softprompt.fitting.settings import SettingError, as_mapping, check_keys, field_names, parsed
from softprompt.fitting.yaml_file import read_yaml
from softprompt.studies.flat_keys import FLAT_KEYS, about_older_keys, flat_keys_in
from softprompt.studies.merging import with_variant
from softprompt.studies.run_settings import RUN_KEYS, count, flag
from softprompt.truth_values import numbers_apart

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
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

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

    by: Literal["grid", "optuna"] = "grid"
    """Every combination of the settings, or Optuna's tree-structured Parzen estimator."""
    seeds: tuple[int, ...] = (1000,)
    """Seeds of the runs that choose the settings; final runs have others. Optuna takes one."""
    trials: int = Field(default=20, ge=1)
    """Optuna: settings that are tried for each combination of the axes."""
    at_once: int = Field(default=1, ge=1)
    """Optuna: trials drawn from the same knowledge, so that as many workers have something to do."""
    prune: bool = True
    """Optuna: stop a trial whose validation metric is below the median of the earlier ones at the same step."""
    seed: int = Field(default=0, ge=0)
    """Seed of Optuna's own draws."""

    @model_validator(mode="after")
    def _a_trial_is_one_run(self) -> SearchConfig:
        if self.by == "optuna" and len(self.seeds) != 1:
            raise ValueError(
                f"seeds are {list(self.seeds)}, and a trial of Optuna is one run: name one, or take by: grid"
            )
        return self


@dataclass(frozen=True, config=_STRICT)
class Range:
    """Numbers from `low` to `high`, both included; integers if both ends are integers."""

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

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
    """One value of an axis: the settings that it changes, and its own `select` and `seeds` (None: those of the study)."""

    changes: Mapping[str, Any]
    select: Select | None = None
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A study as it was read; see the top of this file.

    shared        settings of all runs
    axes          axis -> label -> option, in the file's order
    runs          named runs in addition to the grid, as options
    compare       the axis whose options are compared, as lines of the tables
    keep_prompts  whether final runs save their prompt
    ensembles     whether the prompts of a combination's seeds are also evaluated as an ensemble
    together      how many runs of one method are trained in one batch
    cache_features  whether features below the first trained weight are computed once for each row; or a folder that keeps them
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


def read_study(path: Path, *, full: bool = False) -> Study:
    """The study that a YAML file describes; full: with its key `full` merged over it.

    Raises FileNotFoundError, and ValueError for invalid YAML, an unknown key and an invalid value. Warns with
    SoftpromptWarning about the keys that studies had before `protocol`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no study {path}; expected a YAML file that describes one")
    document = read_yaml(path)
    try:
        values = as_mapping(document.values, "a study")
        if older := flat_keys_in(values):
            warnings.warn(about_older_keys(path, older), SoftpromptWarning, stacklevel=2)
        if full:
            if "full" not in values:
                raise ValueError("the study has no key 'full'")
            values = with_variant(values, as_mapping(values["full"], "full"))
        values.pop("full", None)
        return parse_study(values)
    except ValueError as error:
        key = error.key if isinstance(error, SettingError) and not full else ""
        line = document.line(key)
        raise ValueError(f"{path}{'' if line is None else f', line {line}'}: {error}") from error


def parse_study(values: Mapping[str, Any]) -> Study:
    """Raises ValueError for an unknown key and an invalid value. `plan` checks the runs themselves."""
    check_keys({key: None for key in values if key not in FLAT_KEYS}, [*RUN_KEYS, *_OWN_KEYS], "")
    for key in ("backbone", "task", "method", "protocol"):
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
                "or its score is one by which it was chosen"
            )
    compare = values.get("compare") or ("method" if "method" in axes else next(iter(axes), "method"))
    if axes and compare not in axes:
        raise SettingError(f"compare is {compare!r}, expected one of the axes {list(axes)}", "compare")
    keep, cached = flag(values, "keep_prompts", True), parse_cache(values.get("cache_features", False))
    together = count(values.get("together"), "together", "of runs in one batch") or 1
    ensembles = flag(values, "ensembles", False)
    if ensembles and not keep:
        raise ValueError("ensembles is true and keep_prompts false: an ensemble needs the saved prompts")
    shared = {key: value for key, value in values.items() if key in (*RUN_KEYS, *FLAT_KEYS)}
    return Study(
        title=str(values.get("title") or "A study"),
        shared=shared,
        axes=axes,
        runs=runs,
        seeds=seeds,
        select=select,
        search=search,
        compare=compare,
        keep_prompts=keep,
        together=together,
        cache_features=cached,
        values=dict(values),
        ensembles=ensembles,
    )


def _axis(name: str, axis: Any) -> dict[str, Option]:
    place = f"axes.{name}"
    if isinstance(axis, Mapping) and axis:
        return {
            str(label): _option(as_mapping(option, f"{place}.{label}"), f"{place}.{label}")
            for label, option in axis.items()
        }
    if not isinstance(axis, list) or not axis:
        raise SettingError(f"{place} is {shown(axis)}, expected a list of values or options by name", place)
    _check_run_keys([name], "axes")
    labelled = {_label(name, value): Option({name: value}) for value in axis}
    if len(labelled) < len(axis):
        raise ValueError(
            f"{place} has two values with the same name, {list(labelled)}: give them names of their own"
        )
    return labelled


def _option(values: Mapping[str, Any], place: str) -> Option:
    changes = {key: value for key, value in values.items() if key not in ("select", "seeds")}
    _check_run_keys(changes, place)
    select = _select(values["select"], f"{place}.select") if "select" in values else None
    seeds = _seeds(values["seeds"], f"{place}.seeds") if "seeds" in values else None
    return Option(changes, select, seeds)


def _check_run_keys(dotted: Iterable[Any], place: str) -> None:
    keys = [str(key).split(".")[0] for key in dotted]
    check_keys({key: None for key in keys if key not in FLAT_KEYS}, RUN_KEYS, place)


def _label(axis: str, value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value)
    name = value.get("name") or value.get("source")
    settings = [f"{key}={item}" for key, item in value.items() if key not in ("name", "source")]
    return " ".join([*([str(name)] if name else []), *settings]) or axis


def _seeds(value: Any, place: str) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or not value or len(set(value)) < len(value):
        raise SettingError(f"{place} is {shown(value)}, expected a list of different whole numbers", place)
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
    """The combinations of the axes, then the named runs: labels by axis, and the options that they consist of."""
    found: list[tuple[dict[str, str], Sequence[Option]]] = [({}, ())] if study.axes or not study.runs else []
    for axis, options in study.axes.items():
        found = [
            ({**labels, axis: label}, (*chosen, option))
            for labels, chosen in found
            for label, option in options.items()
        ]
    return found + [({study.compare: name}, (option,)) for name, option in study.runs.items()]
