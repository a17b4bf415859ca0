"""Protocol: a way of measuring, as a value, that turns an experiment into a result."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict
from pydantic.fields import FieldInfo

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.data import Row, Rows, names_file, read_rows
from softprompt.errors import TrainingDiverged
from softprompt.features.cache import FeatureCache
from softprompt.features.encodings import Encodings
from softprompt.fitting.run_config import RunConfig, SourceConfig
from softprompt.fitting.settings import check_keys, field_names
from softprompt.fitting.sources import source_rows
from softprompt.plain_settings import PlainSettings
from softprompt.prompts import Method
from softprompt.store.identity import settings_of
from softprompt.tasks.base import Task
from softprompt.training.progress import ConsoleProgress, Progress, Silent
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt

STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)
"""How the settings of a protocol are checked: unknown ones are errors, and docstrings describe each."""


@dataclass(eq=False)
class Workbench:
    """Data that successive experiments on one backbone and task share, so that it is made once.

    read       returns the rows of a source; its second argument is the split to read if the source has splits and names none
    encodings  encoded rows, by list of rows
    features   features of the frozen backbone; None: each training makes its own
    draws      rows that a seed drew, by the rows that they were drawn from
    """

    read: Callable[[SourceConfig, str], Sequence[Row]] = source_rows
    encodings: Encodings = field(default_factory=Encodings)
    features: RowFeatures | None = None
    draws: dict[str, Any] = field(default_factory=dict)

    def drawn(self, key: str, rows: Sequence[Row], draw: Callable[[], Any]) -> Any:
        """The result of `draw`, made once for this list of rows and this key."""
        place = f"{id(rows)} {key}"
        if place not in self.draws:
            self.draws[place] = rows, draw()  # the rows are held, so that no other list gets their id
        return self.draws[place][1]


@dataclass(frozen=True, eq=False)
class Experiment:
    """An experiment: one way of tuning for one task on one backbone, and the rows to measure it on.

    recipe      how to train; its seed is the experiment's
    validation  rows that choose the best checkpoint; None: there are none
    test        rows to test the result on; None for an experiment that chooses settings
    folder      folder for checkpoints, from which a killed experiment resumes; None: no checkpoints
    cache       of features below the first trained weight; None: they are computed in every step
    progress    receives the progress of each training
    """

    backbone: Backbone
    task: Task
    method: Method
    recipe: Recipe
    train: Sequence[Row]
    validation: Sequence[Row] | None = None
    test: Sequence[Row] | None = None
    folder: Path | None = None
    cache: FeatureCache | None = None
    progress: Progress = field(default_factory=Silent)
    bench: Workbench = field(default_factory=Workbench)


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """The result of a protocol.

    main_metric         name of the metric that decides
    metrics             the metrics by data set: validation, test, or the name of another one
    rows                the rows that were read, by the same names and "train"
    prompt              the tuned prompt; None if there are several, or if it is of little use outside of the protocol
    history             a record per optimizer step
    trained_parameters  how many numbers were trained
    learning_rate       of the prompt
    steps_made          optimizer steps, of all trainings together
    best_step           step of the chosen checkpoint; None: the last one, or there were several trainings
    seconds             of training
    test_seconds        seconds that this process spent on tests, after training
    concerns            sentences for the reader, in addition to the warnings
    details             the protocol's own result, if it has one
    """

    main_metric: str
    metrics: Mapping[str, Mapping[str, Any]]
    rows: Mapping[str, Sequence[Row]]
    prompt: TunedPrompt | None = None
    history: Sequence[Mapping[str, Any]] = ()
    trained_parameters: int | None = None
    learning_rate: float | None = None
    steps_made: int = 0
    best_step: int | None = None
    seconds: float = 0.0
    test_seconds: float = 0.0
    concerns: Sequence[str] = ()
    details: Any = None

    @property
    def score(self) -> float:
        """The main metric on the test rows, or on the validation rows if there are no test rows."""
        judged = self.metrics["test"] if "test" in self.metrics else self.metrics["validation"]
        return float(judged[self.main_metric])


Judge = Callable[[], ProtocolResult]
"""Evaluates a prompt that is trained already."""


class Protocol(metaclass=PlainSettings):
    """A way of measuring: an immutable value, as a method is. A subclass is a frozen dataclass of settings."""

    name: ClassVar[str]
    """Its name in `protocol: {name: ...}` of a study."""
    together: ClassVar[bool] = False
    """Whether experiments that differ only in method settings and recipe can be trained in one batch."""

    def run(
        self,
        backbone: Backbone,
        task: Task,
        method: Method,
        train: Rows,
        test: Rows | None = None,
        validation: Rows | None = None,
        *,
        recipe: Recipe | None = None,
        folder: str | Path | None = None,
        cache_features: bool | str | Path | FeatureCache = False,
        progress: bool | Progress = False,
    ) -> ProtocolResult:
        """Measure one way of tuning. The arguments are those of `fit`; test rows are read once, at the end.

        train, test, validation  a name with splits gives its split of that name
        folder                   checkpoints go there; an experiment that was killed goes on from them
        Raises what `fit` raises, and ValueError for a task, a method or rows that the protocol cannot measure.
        """
        return self.measure(
            Experiment(
                backbone=backbone,
                task=task,
                method=method,
                recipe=recipe or Recipe(),
                train=rows_of(train, "train"),
                validation=None if validation is None else rows_of(validation, "validation"),
                test=None if test is None else rows_of(test, "test"),
                folder=None if folder is None else Path(folder),
                cache=FeatureCache.of(cache_features),
                progress=_shown(progress),
            )
        )

    @abstractmethod
    def measure(self, experiment: Experiment) -> ProtocolResult:
        """Like `run`, on rows that are read already."""

    def train_together(self, experiments: Sequence[Experiment]) -> list[Judge | TrainingDiverged]:
        """Train several experiments in one batch, each as if alone; returns a function for each that evaluates it."""
        raise NotImplementedError(f"{self.name} makes its experiments one by one")

    def check(self, config: RunConfig) -> None:
        """Raise ValueError for a run of a study that this protocol cannot measure; called before anything is loaded."""

    def main_metric(self, task: Task) -> str:
        """Name of the metric that decides."""
        return task.main_metric

    def for_choosing(self) -> Protocol:
        """The protocol of runs that choose settings; it reads no test rows."""
        return self

    def sources(self) -> Mapping[str, SourceConfig]:
        """Further data sets by name, which the protocol reads in addition to the experiment's."""
        return {}

    def draws(self) -> int | None:
        """The number of training rows that the seed draws from each class; None: it trains on all rows."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, without those at their default. They are part of a run's id.

        So a setting that is added later changes the name of no run that does not use it.
        """
        plain = settings_of(self)
        fields: Mapping[str, FieldInfo] = self.__pydantic_fields__  # type: ignore[attr-defined]  # a dataclass of pydantic's
        found = {}
        for name, entry in fields.items():
            value = getattr(self, name)
            if value != entry.get_default(call_default_factory=True):
                found[name] = _written(value, plain[name])
        return found


def _written(value: Any, plain: Any) -> Any:
    """A setting as a plain value, as in JSON, for a run's id."""
    if is_dataclass(value):
        return settings_of(value)
    if isinstance(value, Mapping):
        return {name: _written(part, plain[name]) for name, part in value.items()}
    return plain


def _source(value: Any) -> Any:
    """A source of rows as a mapping, also if it is only a name. An error about an unknown key names the nearest known one."""
    if isinstance(value, str):
        return {"source": value}
    if isinstance(value, dict):
        check_keys(value, field_names(SourceConfig), "")
    return value


Source = Annotated[SourceConfig, BeforeValidator(_source)]
"""A setting that names a source of rows: {source, split, limit ...}, or the name alone."""


def rows_of(source: Rows, split: str) -> list[Row]:
    """Rows, of a source with splits those of this one."""
    return read_rows(source, split if isinstance(source, str) and not names_file(source) else None)


def _shown(progress: bool | Progress) -> Progress:
    if isinstance(progress, bool):
        return ConsoleProgress() if progress else Silent()
    return progress
