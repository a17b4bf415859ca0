"""A run of `fit`: backbone, task, method and rows made ready, and what comes of it when training is over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone
from softprompt.backbones.row_features import RowFeatures
from softprompt.binding import bind, new_head
from softprompt.data import Row, Rows, names_file, read_rows
from softprompt.evaluation import evaluate
from softprompt.features.cache import FeatureCache, recall, with_features
from softprompt.features.encodings import Encodings
from softprompt.images import ImagePooling
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow, windows_of
from softprompt.prompts import BuildContext, Method, PromptModule
from softprompt.state import load_state, named_state, trained_tensors
from softprompt.store.identity import identity_of, settings_of
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.training.checkpoint import rows_identity
from softprompt.training.loop import Run, TrainingResult
from softprompt.training.progress import Progress
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt

log = logging.getLogger(__name__)

Part = Literal["train", "validation"]
Room = tuple[int | None, int, int, ImagePooling | None]


@dataclass(frozen=True, eq=False)
class Data:
    """The rows of a run, or of several: each is encoded once for all prompts that take as much room.

    validation  None: nothing is evaluated
    cache       of what a frozen backbone says of them; None: they are read anew in every step
    encodings   of the runs' task on their backbone
    """

    train: Sequence[Row]
    validation: Sequence[Row] | None
    cache: FeatureCache | None = None
    encodings: Encodings = field(default_factory=Encodings)

    @classmethod
    def read(cls, train: Rows, validation: Rows | None, cache: FeatureCache | None = None) -> Data:
        """Rows as `fit` takes them; a name with splits gives its "train" and "validation" split."""
        return cls(
            read_rows(train, _split_of(train, "train")),
            None if validation is None else read_rows(validation, _split_of(validation, "validation")),
            cache,
        )

    def encoded(self, part: Part, encoder: TaskEncoder, room: Room) -> list[EncodedRow]:
        """The rows of a part, as they are trained on (long ones as their windows) or evaluated."""
        rows = self.train if part == "train" else self.validation or ()
        found = self.encodings.of(rows, encoder, room)
        if part == "validation" or not any(row.windows for row in found):
            return found
        return self.encodings.kept("windows", found, lambda: [w for row in found for w in windows_of(row)])


def room_of(module: PromptModule, max_tokens: int | None) -> Room:
    """Of a prompt: what an encoder is bound to, beside task and backbone."""
    return (max_tokens, module.length, module.prefix_length, module.pooling)


def _split_of(source: Rows, split: str) -> str | None:
    return split if isinstance(source, str) and not names_file(source) else None


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What `fit` trains, as it stands before the first step; its tensors change in training.

    given       the backbone that `fit` was called with
    backbone    what is trained on: itself, or the copy of a method that changes weights, with the recipe's settings
    model       that with the prompt and the head
    encoder     the task's, for this prompt
    parameters  all that is trained, by name; `changed` are those of the backbone
    peak        learning rate of the prompt
    start       the tensors it began with, where they are not the method's own
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
    _evaluations: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[Part, list[EncodedRow]] = field(default_factory=dict)

    @property
    def is_shared(self) -> bool:
        """Whether the backbone's weights are those of the given one: nothing of them is trained."""
        return self.backbone.model is self.given.model

    def encoded(self, part: Part) -> list[EncodedRow]:
        """The rows that are trained on, or those that are evaluated."""
        if part not in self._known:
            rows = self.data.encoded(part, self.encoder, room_of(self.module, self.recipe.max_tokens))
            self._known[part] = (
                rows if self.data.cache is None else self._with_features(rows, self.data.cache)
            )
        return self._known[part]

    def _with_features(self, rows: list[EncodedRow], cache: FeatureCache) -> list[EncodedRow]:
        layers, size = self.method.frozen_layers(self.backbone.spec), self.recipe.batch_size
        # Of the given backbone: what a method puts into its copy is no part of what is frozen.
        if self.module.reads is not None:
            recall(self.model.features, rows, self.module.reads, cache)
        return self.data.encodings.kept(
            ("features", layers, size),
            rows,
            lambda: with_features(self.given, rows, layers, cache, batch_size=size),
        )

    def validate(self) -> dict[str, float]:
        """Metrics over the validation rows as things stand."""
        self.model.forget()
        assert self.data.validation is not None
        metrics = evaluate(
            self.model, self.task, self.encoder, self.data.validation, encoded=self.encoded("validation")
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
            rate = self.recipe.head_learning_rate or usual
            groups.append({"params": [*self.head.parameters()], "lr": rate})
        return groups

    def run(
        self,
        progress: Progress,
        folder: str | Path | None = None,
        resume: bool = True,
        number: int | None = None,
    ) -> Run:
        """As the loop takes it."""
        log.info(
            "%s: %d trained parameters", self.method.name, sum(p.numel() for p in self.parameters.values())
        )
        evaluated = bool(self.data.validation)
        return Run(
            self.parameters,
            self.groups(),
            self.encoded("train"),
            self.recipe,
            self.validate if evaluated else None,
            self.task.main_metric if evaluated else None,
            None if folder is None else Path(folder),
            resume,
            self.start,
            {} if folder is None else self.facts(),
            progress,
            {f"prompt.{name}": tally for name, tally in self.module.tallies().items()},
            number,
        )

    def facts(self) -> dict[str, Any]:
        """What the trained tensors depend on beside recipe and training rows, as JSON; computing it reads the whole table."""
        backbone = settings_of(identity_of(self.given))
        return {
            "method": {"name": self.method.name, **settings_of(self.method)},
            "task": {"name": self.task.name, **settings_of(self.task)},
            "backbone": {key: value for key, value in backbone.items() if key not in ("name", "revision")},
            "validation": rows_identity(self.encoded("validation")) if self.data.validation else None,
        }

    def trained(self, run: TrainingResult) -> TunedPrompt:
        """The result of a run that came to its end."""
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
        """What was learned, as it stands now; it is frozen by this. known: metrics of these tensors, if they were evaluated."""
        self.model.forget()
        metrics: dict[str, Any] = {}
        if self.data.validation:
            # The best tensors were evaluated already, unless that was before the run was resumed.
            found = next((e for e in self._evaluations if known and known.items() <= e.items()), None)
            metrics["validation"] = found or (self.validate() and self._evaluations[-1])
        baked = self.module.bake()
        numbers = sum(parameter.numel() for parameter in self.parameters.values())
        return TunedPrompt(
            self.backbone.with_settings(),
            self.task,
            self.method,
            baked.requires_grad_(False),
            self.recipe.max_tokens,
            settings_of(self.recipe)
            | {"rows": len(self.data.train), "learning_rate": self.peak}
            | ({} if self.start is None else {"start": "given"})
            | facts
            | {"trained_parameters": numbers},
            metrics,
            history,
            None if self.is_shared else identity_of(self.given),
            None if self.head is None else self.head.requires_grad_(False),
            None if baked is self.module else self.module,
        )


def prepare(
    backbone: Backbone,
    task: Task,
    method: Method,
    recipe: Recipe,
    data: Data,
    *,
    start: Mapping[str, Tensor] | None = None,
    features: RowFeatures | None = None,
) -> PreparedRun:
    """Build what is trained. features: of the same backbone, where several runs share them; left alone by a run that changes
    its weights.

    Raises ValueError where backbone, task, method, start and rows do not fit together.
    """
    if reason := method.unsupported(backbone.spec):
        raise ValueError(
            f"{method.name} cannot be used on {backbone.name} ({backbone.spec.family}): {reason}"
        )
    generator = torch.Generator().manual_seed(recipe.seed)
    own = method.prepare(backbone, generator)
    prepared = own.with_settings(
        gradient_checkpointing=recipe.gradient_checkpointing, compiled=recipe.compile
    )
    spec = prepared.spec

    def rows_as_text() -> list[EncodedRow]:
        plain = bind(prepared, task, 0, recipe.max_tokens)
        return data.encodings.of(data.train, plain, (recipe.max_tokens, 0, 0, None))

    context = BuildContext(
        spec=spec,
        labels=task.label_words,
        domains=task.domain_names,
        rows=rows_as_text,
        generator=generator,
    )
    head = new_head(method, task, spec, generator)  # first: whatever the method, it starts the same
    head = None if head is None else head.to(prepared.device)
    module = method.build(context).to(prepared.device)
    encoder = bind(prepared, task, module.length, recipe.max_tokens, module.prefix_length, module.pooling)
    if start is not None:
        load_state(start, named_state(module, prepared.model, head))
        module.goes_on()
    parameters = trained_tensors(module, prepared.model, head)
    changed = [p for name, p in parameters.items() if name.startswith("backbone.")]
    if changed and own is backbone:
        raise ValueError(
            f"{len(changed)} weights of {backbone.name} require a gradient, and {method.name} trains none of them: freeze "
            "the model with model.requires_grad_(False), as load_backbone does"
        )
    return PreparedRun(
        backbone,
        prepared,
        task,
        method,
        recipe,
        data,
        module,
        head,
        PromptedModel(prepared, [module], [head], features if prepared.model is backbone.model else None),
        encoder,
        parameters,
        changed,
        recipe.learning_rate or method.learning_rate(spec),
        start,
    )
