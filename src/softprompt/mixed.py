"""Many tuned prompts on one backbone, with their rows mixed in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from softprompt.data import by_length
from softprompt.model import PromptedModel, carrying
from softprompt.outputs import EncodedRow, ImageTextEmbeddings, TargetLogits
from softprompt.surroundings import undisturbed
from softprompt.tasks.inputs import as_row
from softprompt.tuned import TunedPrompt


class MixedPrompts:
    """Tuned prompts that share a backbone. A batch may hold rows of any of them, and each prompt is run once.

    Every row gets the answer that its own prompt would give it alone. Tasks, templates and prompt lengths may differ.
    Raises ValueError if the prompts are on different backbones, or if none is given.
    """

    def __init__(self, prompts: Sequence[TunedPrompt]) -> None:
        if not prompts:
            raise ValueError("no prompts were given")
        others = {
            prompt.backbone.name
            for prompt in prompts
            if prompt.backbone.model is not prompts[0].backbone.model
        }
        if others:
            raise ValueError(
                f"the prompts must share one backbone object; beside {prompts[0].backbone.name} there is {sorted(others)}: "
                "load the backbone once and pass it to every load()"
            )
        images = [prompt.backbone.spec.image for prompt in prompts]
        if len({(image.rule.mean, image.rule.std) for image in images if image is not None}) > 1:
            raise ValueError(
                "the prompts were trained on pixels of different mean or std: no batch holds both"
            )
        self.prompts = tuple(prompts)
        self.model = PromptedModel(
            prompts[0].backbone, [p.module for p in prompts], [p.head for p in prompts]
        )

    @undisturbed
    def predict(self, inputs: Sequence[Any], prompts: Sequence[int], *, batch_size: int = 16) -> list[Any]:
        """A prediction for each input, in order; see TunedPrompt.predict.

        inputs      texts or rows
        prompts     for each input the number of the prompt that answers it
        batch_size  rows that are run together

        Raises ValueError if inputs and prompts differ in number, or if a prompt's number is unknown.
        """
        if len(inputs) != len(prompts):
            raise ValueError(
                f"there are {len(inputs)} inputs and {len(prompts)} prompt numbers: each input needs one"
            )
        if unknown := sorted({n for n in prompts if not 0 <= n < len(self.prompts)}):
            raise ValueError(f"unknown prompts {unknown}: there are {len(self.prompts)}, numbered from 0")
        rows: list[EncodedRow] = []
        for value, n in zip(inputs, prompts, strict=True):
            tuned = self.prompts[n]
            rows += carrying([tuned.encoder.encode(as_row(tuned.task, value), answer=False)], n)
        answers: dict[int, Any] = {}
        for batch in by_length([len(row.context) for row in rows], batch_size):
            scored = ScoredBatch(self.model, [rows[i] for i in batch])
            for n in {prompts[i] for i in batch}:
                mine = [i for i in batch if prompts[i] == n]
                found = self.prompts[n].encoder.predict(scored, [rows[i] for i in mine], batch_size=len(mine))
                answers |= dict(zip(mine, found, strict=True))
        return [answers[i] for i in range(len(rows))]


class ScoredBatch:
    """A model that has scored the rows of one batch together, and answers for some of them when it is asked."""

    def __init__(self, model: PromptedModel, rows: list[EncodedRow]) -> None:
        self.model = model
        self._place = {id(row): i for i, row in enumerate(rows)}
        self._scores: TargetLogits | ImageTextEmbeddings | None = None
        self._states: Tensor | None = None
        self._starts = [0, *accumulate(len(row.read) for row in rows)]
        with torch.no_grad():
            if any(row.targets for row in rows):
                self._scores = model.score(rows)
            if any(row.read for row in rows):
                self._states = model.states(rows)

    def score(self, rows: Sequence[EncodedRow]) -> Any:
        if self._scores is None or any(
            id(row) not in self._place for row in rows
        ):  # content-free rows of a calibration
            return self.model.score(rows)
        return self._scores.of_rows([self._place[id(row)] for row in rows])

    def outputs(self, rows: Sequence[EncodedRow]) -> Tensor:
        if self._states is None or any(id(row) not in self._place for row in rows):  # windows of a long row
            with torch.no_grad():
                return self.model.outputs(rows)
        places = [self._place[id(row)] for row in rows]
        read = [i for b in places for i in range(self._starts[b], self._starts[b + 1])]
        return self.model.apply_heads(rows, self._states[read])

    def generate(self, rows: Sequence[EncodedRow], **options: Any) -> list[list[int]]:
        return self.model.generate(rows, **options)
