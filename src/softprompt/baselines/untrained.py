"""Prompts without training. Like trained prompts they are run once and shared by all rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule, unread, wordless


class Words(PromptModule):
    """The embeddings of fixed words in place of virtual tokens, (P, d). Nothing is trained."""

    tokens: Tensor

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.register_buffer("tokens", tokens)
        self.length = len(tokens)

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=self.tokens[None] if self.length else None)


class Untrained(Method):
    """A method whose prompt is fixed words."""

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return Words(tensors["tokens"])

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return wordless(spec)

    def head(self, width: int, outputs: int, generator: torch.Generator) -> nn.Module:
        raise ValueError(
            f"{self.name} trains nothing, and this task is answered by a head that must be trained: take LinearProbe()"
        )

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        return []


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ZeroShot(Untrained):
    """The model answers the template as it is, without a prompt."""

    name = "zero-shot"

    def build(self, context: BuildContext) -> PromptModule:
        return Words(torch.zeros(0, context.spec.width))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ManualPrompt(Untrained):
    """A hand-written text stands in place of virtual tokens."""

    text: str = Field(min_length=1)
    """The instruction, together with the line break or space that should follow it."""

    name = "manual-prompt"

    def build(self, context: BuildContext) -> PromptModule:
        return Words(context.spec.embed(torch.tensor(context.spec.tokenize(self.text))))


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class FewShot(Untrained):
    """Demonstrations stand in front: training rows in the template of the task, each with its right answer.

    The seed of the run draws them from one label after the other, so that all labels are shown equally often.
    """

    shots: int = Field(default=8, gt=0)
    """The number of demonstrations, for all labels together."""
    separator: str = "\n\n"
    """The text after each demonstration."""

    name = "few-shot"

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.read_picture is not None:
            return "demonstrations are text, and images would have to stand among them"
        if spec.read_media is not None:
            return "demonstrations are text, and this backbone reads sound or pictures"
        return unread(spec)

    def build(self, context: BuildContext) -> PromptModule:
        rows = _in_turn(context.rows(), context.generator)
        if len(rows) < self.shots:
            raise ValueError(
                f"{self.shots} demonstrations need {self.shots} training rows, and there are {len(rows)}"
            )
        gap = context.spec.tokenize(self.separator)
        ids: list[int] = []
        for row in rows[: self.shots]:
            assert row.gold is not None
            text = [atom for atom in row.context if atom >= 0]
            edges = context.spec.special_ids - {context.spec.mask}
            if text and text[0] in edges:
                text = text[1:]  # a BOS, which the template of the row to be answered has already
            while context.spec.closed and text and text[-1] in edges:
                text.pop()
            answer = [token for token in row.targets[row.gold] if token not in context.spec.special_ids]
            ids += [*_answered(text, answer, context.spec.mask), *gap]
        return Words(context.spec.embed(torch.tensor(ids)))


def _answered(text: list[int], answer: list[int], mask: int | None) -> list[int]:
    """Return the text with its answer in place of the masks, or at the end if there are no masks."""
    places = [i for i, token in enumerate(text) if token == mask]
    if not places:
        return text + answer
    if len(places) == 1:
        return text[: places[0]] + answer + text[places[0] + 1 :]
    filled = dict(zip(places, answer, strict=True))
    return [filled.get(i, token) for i, token in enumerate(text)]


def _in_turn(rows: Sequence[EncodedRow], generator: torch.Generator) -> list[EncodedRow]:
    """Return the rows shuffled, and then ordered so that labels take turns."""
    groups: dict[Any, list[EncodedRow]] = {}
    for i in torch.randperm(len(rows), generator=generator).tolist():
        # A generation task has one target per row and no labels, so that its rows form one group.
        groups.setdefault(rows[i].gold if len(rows[i].targets) > 1 else None, []).append(rows[i])
    ordered = [groups[label] for label in sorted(groups, key=str)]
    turns = max(map(len, ordered), default=0)
    return [group[turn] for turn in range(turns) for group in ordered if turn < len(group)]
