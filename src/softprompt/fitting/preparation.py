"""Preparation of a run of `fit` from backbone, task, method and rows, and the tuned prompt that it ends with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import Tensor, nn

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.backbones.spread import check_trainable
from softprompt.binding import bind, new_head, room_of
from softprompt.data import MANY, IndexedRows, Row, Rows, digest_of, names_file, open_rows, read_rows
from softprompt.errors import shown
from softprompt.evaluation import Metrics, evaluate
from softprompt.features.cache import FeatureCache
from softprompt.features.encoded import FrozenPart, encoded_rows
from softprompt.features.encodings import Encodings
from softprompt.features.lazy import LazilyEncoded
from softprompt.files import named
from softprompt.fitting import head_first
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts import BuildContext, Method, PromptModule
from softprompt.prompts.hooks import continue_from_earlier, tallies_of
from softprompt.state import load_state, named_state, trained_tensors
from softprompt.store.identity import identity_of, named_settings, settings_of
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.room import Room
from softprompt.training.callbacks import Callback
from softprompt.training.checkpoint import begun_with, rows_identity
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run, TrainingResult
from softprompt.tuned import TunedPrompt

log = logging.getLogger(__name__)

Part = Literal["train", "validation"]


@dataclass(frozen=True, eq=False)
class Data:
    """The rows of one run or of several; they are encoded once for all prompts that take the same room.

    train       many rows, and those of a large file, are read and encoded when a step needs them
    validation  None: nothing is evaluated
    cache       of the frozen layers' features; None: they are computed in every step
    encodings   encoded rows, of the runs' task on their backbone
    """

    train: Sequence[Row]
    validation: Sequence[Row] | None
    cache: FeatureCache | None = None
    encodings: Encodings = field(default_factory=Encodings)

    @classmethod
    def read(cls, train: Rows, validation: Rows | None, cache: FeatureCache | None = None) -> Data:
        """Rows as `fit` takes them; a name with splits gives its "train" and "validation" split."""
        return cls(
            open_rows(train, _split_of(train, "train")),
            None if validation is None else read_rows(validation, _split_of(validation, "validation")),
            cache,
        )

    def is_long(self, task: Task) -> bool:
        """Whether so many rows of text are trained on that they are encoded one by one, when a step needs them."""
        return len(self.train) >= MANY and not (task.about_images or task.in_windows)

    def content(self) -> str | None:
        """The sha256 of the rows that are trained on, before they are encoded; None: they are more than texts and numbers."""
        return self.train.digest() if isinstance(self.train, IndexedRows) else digest_of(self.train)

    def encoded(self, part: Part, encoder: TaskEncoder, room: Room, frozen: FrozenPart) -> list[EncodedRow]:
        """The encoded rows of a part; for training, long rows become their windows.

        encoder  the task's, bound to `room`
        frozen   what is frozen under the prompt, whose features are cached
        """
        rows = self.train if part == "train" else self.validation or ()
        windows = part == "train"
        return encoded_rows(rows, encoder, room, frozen, encodings=self.encodings, windows=windows)


def _split_of(source: Rows, split: str) -> str | None:
    return split if isinstance(source, str) and not names_file(source) else None


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """Everything that `fit` trains with; its tensors change in training.

    given       the backbone that `fit` was called with
    backbone    the one that is run, with the recipe's settings: `given`, or a copy where the method changes weights
    model       backbone, prompt and head put together
    encoder     the task's, bound to the room of this prompt
    parameters  everything that is trained, by name
    changed     those of them that are weights of the backbone
    peak        peak learning rate of the prompt
    start       the initial values, where they are not the method's own
    metrics     further metrics, see `evaluate`
    """

    given: Backbone
    backbone: Backbone
    task: Task
    method: Method
    recipe: Recipe
    data: Data
    module: PromptModule
    head: nn.Module | None
    model: PromptedModel
    encoder: TaskEncoder
    parameters: Mapping[str, nn.Parameter]
    changed: Sequence[nn.Parameter]
    peak: float
    start: Mapping[str, Tensor] | None
    metrics: Metrics = field(default_factory=dict)
    _evaluations: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[Part, Sequence[EncodedRow]] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        """Whether the model is the given backbone's own: none of its weights is trained."""
        return self.backbone.model is self.given.model

    def encoded(self, part: Part) -> Sequence[EncodedRow]:
        """The encoded rows that are trained on, or those that are evaluated."""
        if part == "train" and self.data.cache is None and self.data.is_long(self.task):
            return LazilyEncoded(self.data.train, self.encoder)
        if part not in self._known:
            frozen = FrozenPart(
                backbone=self.given,  # what a method puts into its copy is not frozen
                cache=self.data.cache,
                layers=self.method.frozen_layers(self.backbone.spec),
                reads=self.module.reads,
                row_features=self.model.features,
                batch_size=self.recipe.batch_size,
            )
            room = room_of(self.module, self.recipe.max_tokens)
            self._known[part] = self.data.encoded(part, self.encoder, room, frozen)
        return self._known[part]

    def validate(self) -> dict[str, float]:
        """Metrics of the current tensors over the validation rows."""
        self.model.forget()
        assert self.data.validation is not None
        metrics = evaluate(
            self.model,
            self.task,
            self.encoder,
            self.data.validation,
            encoded=self.encoded("validation"),
            metrics=self.metrics,
        )
        self.model.forget()
        self._evaluations.append(metrics)
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    def groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups."""
        groups = self.method.parameter_groups(self.module, self.peak)
        if self.changed:
            groups.append({"params": self.changed, "lr": self.peak})
        groups = [group for group in groups if group["params"]]
        if self.head is not None:
            usual = self.method.head_learning_rate(self.backbone.spec) if groups else self.peak
            if self.recipe.head_first:
                usual *= head_first.RATE
            rate = self.recipe.head_learning_rate or usual
            groups.append({"params": [*self.head.parameters()], "lr": rate})
        return groups

    def run(
        self,
        progress: Progress,
        folder: str | Path | None = None,
        resume: bool = True,
        number: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Run:
        """The run for the training loop.

        progress  is told of each step and evaluation
        folder    where checkpoints are written; None: nowhere
        resume    whether to resume from a checkpoint in the folder
        number    the number of the prompt that its rows carry, where several runs share a model
        callbacks  of the user
        """
        log.info(
            "%s: %d trained parameters", self.method.name, sum(p.numel() for p in self.parameters.values())
        )
        evaluated = bool(self.data.validation)
        fitted = self.recipe.head_first and self.head is not None and self.start is None
        if fitted and not (resume and folder is not None and begun_with(named(folder))):
            self._fit_head()
        return Run(
            parameters=self.parameters,
            groups=self.groups(),
            rows=self.encoded("train"),
            content=self.data.content() if folder is not None and self.data.is_long(self.task) else None,
            recipe=self.recipe,
            evaluate=self.validate if evaluated else None,
            main_metric=(self.recipe.main_metric or self.task.main_metric) if evaluated else None,
            folder=None if folder is None else named(folder),
            resume=resume,
            start=self.start,
            facts={} if folder is None else self.facts(),
            progress=progress,
            tallies={f"prompt.{name}": tally for name, tally in tallies_of(self.module).items()},
            number=number,
            callbacks=callbacks,
            judge_start=fitted and evaluated,
        )

    def _fit_head(self) -> None:
        assert self.head is not None
        head_first.fit_head(
            self.head,
            self.model,
            self.encoder,
            self.encoded("train"),
            self.encoded("validation") if self.data.validation else (),
            seed=self.recipe.seed,
            batch_size=self.recipe.batch_size,
        )

    def facts(self) -> dict[str, Any]:
        """What the trained tensors depend on besides recipe and training rows, as JSON. It reads the whole embedding table."""
        backbone = settings_of(identity_of(self.given))
        return {
            "method": named_settings(self.method),
            "task": named_settings(self.task),
            "backbone": {key: value for key, value in backbone.items() if key not in ("name", "revision")},
            "validation": rows_identity(self.encoded("validation")) if self.data.validation else None,
        }

    def trained(self, run: TrainingResult) -> TunedPrompt:
        """The tuned prompt of a run that was trained to its end."""
        return self.result(
            [record.as_dict() for record in run.history],
            run.metrics,
            steps_made=run.steps,
            best_step=run.best_step,
            seconds=run.seconds,
        )

    def result(
        self,
        history: Sequence[Mapping[str, Any]],
        known: Mapping[str, float] | None = None,
        **facts: Any,
    ) -> TunedPrompt:
        """The tuned prompt with the current tensors, which are frozen by this.

        history  a record per step, as plain JSON
        known    metrics of these tensors, where they were evaluated already
        facts    entries of the tuned prompt's recipe
        """
        self.model.forget()
        metrics: dict[str, Any] = {}
        if self.data.validation:
            # The best tensors were evaluated already, unless that was before the run was resumed.
            found = next((e for e in self._evaluations if known and known.items() <= e.items()), None)
            metrics["validation"] = found or (self.validate() and self._evaluations[-1])
        baked = self.module.bake()
        numbers = sum(parameter.numel() for parameter in self.parameters.values())
        return TunedPrompt(
            backbone=self.backbone.with_settings(),
            task=self.task,
            method=self.method,
            module=baked.requires_grad_(False),
            max_tokens=self.recipe.max_tokens,
            recipe=settings_of(self.recipe)
            | {"rows": len(self.data.train), "learning_rate": self.peak}
            | ({} if self.start is None else {"start": "given"})
            | facts
            | {"trained_parameters": numbers},
            metrics=metrics,
            history=history,
            identity=None if self.is_shared else identity_of(self.given),
            head=None if self.head is None else self.head.requires_grad_(False),
            unbaked=None if baked is self.module else self.module,
        )


def check_arguments(backbone: Any, task: Any, method: Any) -> None:
    """Raise TypeError for a name, a model or a class where a backbone, a task or a method is expected."""
    if isinstance(backbone, str | Path):
        raise TypeError(
            f"backbone is the name {str(backbone)!r}: load it with sp.load_backbone({str(backbone)!r})"
        )
    if isinstance(backbone, nn.Module) or not hasattr(backbone, "spec"):
        raise TypeError(
            f"backbone is a {type(backbone).__name__}, expected what sp.load_backbone returns: a model of transformers becomes"
            " a backbone by sp.load_backbone(model, tokenizer=tokenizer)"
        )
    for name, found, kind, example in (
        (
            "task",
            task,
            Task,
            'sp.TextClassification("{text}\\nMood:", labels={"bad": " bad", "good": " good"})',
        ),
        ("method", method, Method, "sp.PromptTuning(length=20)"),
    ):
        if isinstance(found, type):
            raise TypeError(
                f"{name} is the class {found.__name__}, expected its settings: {found.__name__}(...)"
            )
        if not isinstance(found, kind):
            raise TypeError(f"{name} is {shown(found)}, expected an object such as {example}")


def prepare(
    backbone: Backbone,
    task: Task,
    method: Method,
    recipe: Recipe,
    data: Data,
    *,
    start: Mapping[str, Tensor] | None = None,
    features: RowFeatures | None = None,
    metrics: Metrics | None = None,
) -> PreparedRun:
    """Build everything that a run needs before its first step.

    recipe    its seed decides the initial values
    data      may be shared by the runs of one task on one backbone
    start     initial values by name, instead of the method's own
    features  of the backbone, where runs share them; a run that changes the backbone's weights does not use them
    metrics   further metrics of the validation rows, see `evaluate`
    Raises ValueError where backbone, task, method, start and rows do not fit together, and for a backbone that cannot be
    trained through as it was loaded.
    """
    if reason := method.unsupported(backbone.spec):
        raise ValueError(
            f"{method.name} cannot be used on {backbone.name} ({backbone.spec.family}): {reason}"
        )
    check_arguments(backbone, task, method)
    check_trainable(backbone.model, backbone.name, PartialState().num_processes)
    task = task.for_rows(data.train)
    generator = torch.Generator().manual_seed(recipe.seed)
    own = method.prepare(backbone, generator)
    prepared = own.with_settings(
        gradient_checkpointing=recipe.gradient_checkpointing, compiled=recipe.compile
    )
    spec = prepared.spec

    def rows_as_text() -> Sequence[EncodedRow]:
        room = Room(recipe.max_tokens)
        encoder = bind(prepared, task, room)
        if data.is_long(task):
            return LazilyEncoded(data.train, encoder)
        return data.encodings.of(data.train, encoder, room)

    context = BuildContext(
        spec=spec,
        labels=task.label_words,
        domains=task.domain_names,
        rows=rows_as_text,
        generator=generator,
    )
    head = new_head(
        method, task, spec, generator
    )  # first, so that its initial values do not depend on the method
    head = None if head is None else head.to(prepared.device)
    module = method.build(context).to(prepared.device)
    encoder = bind(prepared, task, room_of(module, recipe.max_tokens))
    if start is not None:
        load_state(start, named_state(module, prepared.model, head))
        continue_from_earlier(module)
    parameters = trained_tensors(module, prepared.model, head)
    changed = [p for name, p in parameters.items() if name.startswith("backbone.")]
    if changed and own is backbone:
        raise ValueError(
            f"{len(changed)} weights of {backbone.name} require a gradient, and {method.name} trains none of them: freeze "
            "the model with model.requires_grad_(False), as load_backbone does"
        )
    shared = features if prepared.model is backbone.model else None
    prepared_run = PreparedRun(
        given=backbone,
        backbone=prepared,
        task=task,
        method=method,
        recipe=recipe,
        data=data,
        module=module,
        head=head,
        model=PromptedModel(prepared, [module], [head], shared),
        encoder=encoder,
        parameters=parameters,
        changed=changed,
        peak=recipe.learning_rate or method.learning_rate(spec),
        start=start,
        metrics=metrics or {},
    )
    if recipe.epochs is None:
        return prepared_run
    # Counted over encoded rows: a long row may be trained on as several windows.
    return replace(prepared_run, recipe=recipe.in_steps(len(prepared_run.encoded("train"))))
