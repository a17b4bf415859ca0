"""What a method is: settings that build a module, whose forward gives a PromptOutput."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.outputs import EncodedRow, PromptOutput


@dataclass(frozen=True)
class BuildContext:
    """What a method may look at when it builds its module.

    spec       the facts of the backbone
    labels     label name -> its words, where the task has labels (class-label initialisation)
    rows       gives the training rows, encoded without virtual tokens but with their answers (demonstrations)
    generator  the only source of randomness, on the CPU
    """

    spec: BackboneSpec
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Callable[[], Sequence[EncodedRow]] = tuple
    generator: torch.Generator = field(default_factory=torch.Generator)


class PromptModule(nn.Module):
    """The trained part of a method. Its parameters are float32, whatever the backbone's precision."""

    length: int
    """P, the number of virtual tokens that the template must make room for."""

    def forward(self) -> PromptOutput:
        """The prompt of this task, G = 1, `rows` left None."""
        raise NotImplementedError

    def bake(self) -> PromptModule:
        """The module as it is saved for use: reparametrizations folded away. By default the module itself."""
        return self


class Method(ABC):
    """Settings of a method: an immutable (pydantic) dataclass, the same whatever the backbone and the task."""

    name: ClassVar[str]
    """How configs, files and the command line call it, e.g. `prompt-tuning`."""

    @abstractmethod
    def build(self, context: BuildContext) -> PromptModule:
        """A fresh, initialised module."""

    @abstractmethod
    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        """The module that was saved as these tensors (its baked `state_dict()`)."""

    def unsupported(self, spec: BackboneSpec) -> str | None:
        """Why this method is not defined on such a backbone, as half a sentence; None where it is."""
        return None

    def prepare(self, backbone: Backbone) -> Backbone:
        """The backbone that this method trains on: the frozen one itself, unless the method changes its weights."""
        return backbone

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Default peak learning rate of AdamW on this backbone."""
        return 0.01

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups, each with its own `lr`."""
        return [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}]
