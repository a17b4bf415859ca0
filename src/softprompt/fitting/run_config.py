"""The YAML file that describes a run: it is read, changed by `key=value` overrides, and checked.

    backbone: smollm2-135m-instruct            or {name, dtype, device, prefix_lm ...}
    task: {name: text-classification, template: "{text}\\nMood:", labels: {neg: " bad", pos: " good"}}
    method: {name: prompt-tuning, length: 20}
    data: {train: multiemo-products, validation: multiemo-products, test: {source: rows.csv, limit: 500}}
    recipe: {steps: 300}
    seed: 0
    cache_features: caches/products            or true: frozen layers are computed once, see `fit`

Relative paths in it start at the folder that the command is run in.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import ConfigDict, Field, StrictBool, model_validator
from pydantic.dataclasses import dataclass

from softprompt.catalogue import methods
from softprompt.errors import shown
from softprompt.fitting.settings import SettingError, as_mapping, by_name, check_keys, field_names, parsed
from softprompt.fitting.yaml_file import parse_document, read_yaml
from softprompt.later import LATER
from softprompt.prompts import Method
from softprompt.store.identity import named_settings, settings_of
from softprompt.store.places import to_home
from softprompt.tasks import TASKS
from softprompt.tasks.base import Task
from softprompt.training.recipe import Recipe
from softprompt.truth_values import numbers_apart

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, config=_STRICT)
class BackboneConfig:
    """Which frozen model, and how it is run."""

    name: str
    """A built-in model, a local folder or a hub id."""
    dtype: str = "auto"
    """auto, float32, bfloat16, float16 or float64."""
    device: str | None = None
    """By default the first GPU, else the CPU."""
    revision: Annotated[str | None, LATER] = None
    """Revision of a model on the hub: a branch, a tag or a commit."""
    prefix_lm: Annotated[bool, LATER] = False
    """Whether prompt and input of a decoder attend to each other in both directions."""
    packed: Annotated[bool | None, LATER] = None
    """false: the plain padded path, where rows do not share prompts; by default a trial decides."""
    trust_remote_code: Annotated[StrictBool, LATER] = False
    """Whether Python code that lies beside the model's weights may run."""


@dataclass(frozen=True, config=_STRICT)
class SourceConfig:
    """Where rows come from."""

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

    source: str
    """A built-in data set, a .csv, .tsv, .jsonl, .json or .parquet file, or a data set on the hub."""
    split: str | None = None
    """By default the one named like the data's role (train, validation, test); a file has no splits."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many rows, the same ones whatever the run's seed."""
    draw: Annotated[int, LATER] = Field(default=0, ge=0)
    """Seed of the draw of the `limit` rows: another number draws other rows."""
    stratify: Annotated[str | None, LATER] = None
    """A column, such as the labels, whose values keep their shares among the `limit` rows."""
    part: Annotated[Literal["train", "validation", "test"] | None, LATER] = None
    """Split rows that have no splits: eight tenths, one tenth and one tenth, with equal rows in the same part."""
    words: Annotated[int | None, LATER] = Field(default=None, ge=1)
    """Every text is cut to its first so many words, with one space between them."""
    only: Annotated[Mapping[str, tuple[str, ...]] | None, LATER] = None
    """The wanted values of each column: other rows are left out before `limit` is applied."""
    encoding: Annotated[str | None, LATER] = None
    """Encoding of a text file; by default UTF-8."""
    balance: Annotated[str | None, LATER] = None
    """With `part`: a column, such as the labels, whose values keep their shares in the parts, which are then 70, 15 and
    15 percent."""
    together: Annotated[tuple[str, ...], LATER] = ()
    """With `part`: columns such as the text or a user; rows that are equal in one of them, but for case, punctuation and
    spaces, are in the same part."""

    @model_validator(mode="after")
    def _draws_something(self) -> SourceConfig:
        if self.part is None and (self.balance or self.together):
            raise ValueError("balance and together say how `part` divides rows, and part is missing")
        if self.limit is None and (self.draw or self.stratify):
            raise ValueError("draw and stratify say which rows `limit` takes, and limit is missing")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Plain values. Run ids are computed from them, so keys that were added later are left out at their defaults."""
        return settings_of(self)


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Rows to train on, to choose the best checkpoint, and to test the result."""

    train: SourceConfig
    validation: SourceConfig | None = None
    test: SourceConfig | None = None
    """Evaluated once, at the end."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """A whole run, every default filled in."""

    backbone: BackboneConfig
    task: Task
    method: Method
    data: DataConfig
    recipe: Recipe
    cache_features: bool | str = False
    """As in `fit`: true, in memory for this run; or a folder."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values that `parse_config` reads back as the same run."""
        sources = {field: getattr(self.data, field) for field in field_names(DataConfig)}
        data = {name: source.as_dict() for name, source in sources.items() if source is not None}
        recipe = settings_of(self.recipe)
        seed = recipe.pop("seed")
        task = named_settings(self.task)
        for key in self.task.left_out_of_runs:
            if task[key] is None:
                del task[key]
        return {
            "backbone": settings_of(self.backbone),
            "task": task,
            "method": named_settings(self.method),
            "data": data,
            "recipe": recipe,
            "seed": seed,
        } | ({"cache_features": self.cache_features} if self.cache_features else {})


def read_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a YAML file describes, with `key=value` overrides such as "recipe.steps=500".

    Raises ValueError for invalid YAML, an unknown key (naming the nearest known one) and a value that
    does not fit; FileNotFoundError.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}; expected a YAML file that describes a run")
    document = read_yaml(path)
    values = document.values
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {shown(values)}, expected keys such as backbone, task, method, data")
    try:
        return parse_config(to_home(override(values, overrides)))
    except SettingError as error:
        given = any(error.key.startswith(text.partition("=")[0]) for text in overrides)
        line = None if given else document.line(error.key)
        raise ValueError(f"{path}{'' if line is None else f', line {line}'}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def override(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy with each "dotted.key=value" put in, the value read as YAML.

    Raises ValueError for an override without "=" or one that leads through a value that has no keys.
    """
    changed = copy.deepcopy(dict(values))
    for text in overrides:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise ValueError(f"override {shown(text)}: expected key=value, as in recipe.steps=500")
        changed = written_out(changed)
        *parents, last = dotted.split(".")
        place: Any = changed
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise ValueError(
                    f"override {shown(text)}: {parent!r} is {shown(place)}, which has no keys to set"
                )
        place[last] = _overriding(value, f"override {shown(text)}")
    return changed


def _overriding(text: str, name: str) -> Any:
    """The value of an override. A text keeps the blanks around it: the words of labels begin with one."""
    value = parse_yaml(text, name)
    return text if value == text.strip() else value


def parse_config(values: Mapping[str, Any]) -> RunConfig:
    """Raises ValueError for an unknown or missing key and a value that does not fit."""
    values = written_out(values)
    check_keys(values, [*(field.name for field in dataclasses.fields(RunConfig)), "seed"], "")
    for key in ("backbone", "task", "method", "data"):
        if values.get(key) is None:
            raise ValueError(f"the key {key!r} is missing; a run needs backbone, task, method and data")
    data = as_mapping(values["data"], "data")
    check_keys(data, field_names(DataConfig), "data")
    for name, source in data.items():
        if source is not None:
            check_keys(as_mapping(source, f"data.{name}"), field_names(SourceConfig), f"data.{name}")
    if isinstance(template := as_mapping(values["task"], "task").get("template"), dict):
        raise ValueError(
            f"task.template is read as {shown(template)}: put quotes around a text that begins with a brace"
        )
    return RunConfig(
        parsed(BackboneConfig, as_mapping(values["backbone"], "backbone"), "backbone"),
        by_name(TASKS, as_mapping(values["task"], "task"), "task"),
        by_name(methods(), as_mapping(values["method"], "method"), "method"),
        parsed(DataConfig, data, "data"),
        _recipe(as_mapping(values.get("recipe") or {}, "recipe"), values.get("seed")),
        parse_cache(values.get("cache_features", False)),
    )


def parse_cache(value: Any) -> bool | str:
    """Return true, false or a folder. Raises ValueError for anything else."""
    if not isinstance(value, bool | str) or value == "":
        raise ValueError(f"cache_features is {shown(value)}, expected true, false or a folder")
    return value


def differences(found: Any, expected: Any, place: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> its two values, wherever two nested dictionaries differ."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        keys = dict.fromkeys(itertools.chain(found, expected))
        nested = (
            differences(found.get(k), expected.get(k), f"{place}.{k}" if place else str(k)) for k in keys
        )
        return {key: pair for part in nested for key, pair in part.items()}
    return {} if found == expected else {place: (found, expected)}


def written_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """Write short forms in full: a backbone, task or method that is only a name, data that is only a source."""
    full = dict(values)
    for key in ("backbone", "task", "method"):
        if isinstance(full.get(key), str):
            full[key] = {"name": full[key]}
    if isinstance(full.get("data"), Mapping):
        full["data"] = {k: {"source": v} if isinstance(v, str) else v for k, v in full["data"].items()}
    return full


def _recipe(recipe: Mapping[str, Any], seed: Any) -> Recipe:
    """The recipe with the run's seed. Raises SettingError, in which a seed has the key that it was given by."""
    settings = _with_seed(recipe, seed)
    try:
        return cast("Recipe", parsed(Recipe, settings, "recipe"))
    except SettingError as error:
        if error.key != "recipe.seed" or "seed" in recipe:
            raise
        raise SettingError(str(error).replace("recipe.seed", "seed", 1), "seed") from error


def _with_seed(recipe: Mapping[str, Any], seed: Any) -> dict[str, Any]:
    if seed is None:
        return dict(recipe)
    if recipe.get("seed", seed) != seed:
        raise SettingError(
            f"seed is {shown(seed)} and recipe.seed is {shown(recipe['seed'])}: give one of them", "seed"
        )
    return {**recipe, "seed": seed}


def parse_yaml(text: str, name: str) -> Any:
    """The values of a YAML text. Raises ValueError as `parse_document` does."""
    return parse_document(text, name).values
