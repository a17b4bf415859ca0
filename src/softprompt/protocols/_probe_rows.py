"""Rows as probes read them: frozen states that are computed once, and the metrics of heads on them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone
from softprompt.baselines import LinearProbe
from softprompt.binding import bind, new_head
from softprompt.data import Row, Rows
from softprompt.features.cache import FeatureCache, with_features
from softprompt.model import pool
from softprompt.outputs import EncodedRow, PromptOutput, windows_of
from softprompt.prompts import BuildContext, PromptModule
from softprompt.protocols.base import rows_of
from softprompt.tasks.base import Task, TaskEncoder
from softprompt.tasks.room import Room
from softprompt.training.recipe import Recipe
from softprompt.tuned import TunedPrompt


class ReadRows:
    """The states that heads read of rows, computed once; pooled if the task pools."""

    def __init__(self, backbone: Backbone, rows: Sequence[EncodedRow]) -> None:
        self.rows = rows
        with torch.no_grad():
            parts = [backbone.states(rows[i : i + 64], PromptOutput()) for i in range(0, len(rows), 64)]
            self.states, owners = pool(rows, torch.cat(parts))
        self.places: list[list[int]] = [[] for _ in rows]
        for place, owner in enumerate(owners):
            self.places[owner].append(place)

    def of(self, rows: Sequence[int]) -> Tensor:
        """(n, d), in the order of the rows."""
        return self.states[[place for row in rows for place in self.places[row]]]

    def all(self) -> Tensor:
        """(n, d) of all rows."""
        return self.of(range(len(self.rows)))


@dataclass(frozen=True)
class ProbeRows:
    """A task's rows on a frozen backbone, for heads that are trained on its states.

    head        initial values of a linear probe with the recipe's seed
    train       parts of rows (windows) that are trained on; held_out: those of the validation rows
    validation  the validation rows as they are; encoded: as the task encodes them
    """

    backbone: Backbone
    task: Task
    encoder: TaskEncoder
    head: nn.Linear
    module: PromptModule
    train: ReadRows
    train_rows: int
    held_out: ReadRows
    validation: Sequence[Row]
    encoded: Sequence[EncodedRow]

    def judge(self, outputs: Tensor) -> dict[str, Any]:
        """The task's metrics for a head's `outputs`, (n, K), on `held_out`."""
        model = _Known(outputs, self.held_out.rows)
        return dict(self.task.evaluate(self.encoder.predict(model, self.encoded), self.validation))

    def tuned(
        self,
        tensors: Mapping[str, Tensor],
        max_tokens: int | None,
        settings: Mapping[str, Any],
        metrics: Mapping[str, Any],
    ) -> TunedPrompt:
        """The probe with this head, its settings and its metrics on the validation rows."""
        self.head.load_state_dict(dict(tensors))
        facts = {
            "rows": self.train_rows,
            "trained_parameters": sum(p.numel() for p in self.head.parameters()),
        }
        return TunedPrompt(
            backbone=self.backbone.with_settings(),
            task=self.task,
            method=LinearProbe(),
            module=self.module.requires_grad_(False),
            max_tokens=max_tokens,
            recipe=dict(settings) | facts,
            metrics={"validation": dict(metrics)},
            head=self.head.requires_grad_(False),
        )


def read_for_probes(
    backbone: Backbone,
    task: Task,
    train: Rows,
    validation: Rows,
    recipe: Recipe,
    cache_features: bool | str | Path | FeatureCache,
) -> ProbeRows:
    """One pass through the backbone over all rows.

    recipe: its seed, max_tokens and batch_size. Raises ValueError for no rows and for a task without a head.
    """
    train_rows = rows_of(train, "train")
    validation_rows = rows_of(validation, "validation")
    method = LinearProbe()
    generator = torch.Generator().manual_seed(recipe.seed)
    head = new_head(method, task, backbone.spec, generator)
    assert isinstance(head, nn.Linear)
    module = method.build(BuildContext(backbone.spec, generator=generator)).to(backbone.device)
    encoder = bind(backbone, task, Room(recipe.max_tokens))
    cache = FeatureCache.of(cache_features) or FeatureCache()
    cache = replace(cache, memory=sys.maxsize)  # d numbers for each place that is read
    encoded, others = (
        with_features(
            backbone, [encoder.encode(row) for row in part], None, cache, batch_size=recipe.batch_size
        )
        for part in (train_rows, validation_rows)
    )
    return ProbeRows(
        backbone=backbone,
        task=task,
        encoder=encoder,
        head=head.to(backbone.device),
        module=module,
        train=ReadRows(backbone, [part for row in encoded for part in windows_of(row)]),
        train_rows=len(train_rows),
        held_out=ReadRows(backbone, [part for row in others for part in windows_of(row)]),
        validation=validation_rows,
        encoded=others,
    )


class _Known:
    """A model that returns known outputs to `TaskEncoder.predict`."""

    def __init__(self, outputs: Tensor, rows: Sequence[EncodedRow]) -> None:
        counts = [min(1, len(row.read)) if row.pooled else len(row.read) for row in rows]
        self.found = {
            id(row.known): part for row, part in zip(rows, outputs.detach().split(counts), strict=True)
        }

    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor:
        return torch.cat([self.found[id(row.known)] for row in rows])

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        raise NotImplementedError("a probe scores no words")

    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]:
        raise NotImplementedError("a probe writes no text")
