"""What a method is: settings that build a module, whose forward gives a PromptOutput."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.images import ImagePooling
from softprompt.outputs import EncodedRow, PromptOutput


@dataclass(frozen=True)
class BuildContext:
    """What a method may look at when it builds its module.

    spec       the facts of the backbone
    labels     label name -> its words, where the task has labels (class-label initialisation)
    rows       gives the training rows, encoded without virtual tokens but with their answers (demonstrations)
    generator  the only source of randomness, on the CPU
    domains    names of the domains that the task tells apart, if it does
    """

    spec: BackboneSpec
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Callable[[], Sequence[EncodedRow]] = tuple
    generator: torch.Generator = field(default_factory=torch.Generator)
    domains: Sequence[str] = ()


class PromptModule(nn.Module):
    """The trained part of a method. Its parameters are float32, whatever the backbone's precision.

    One that `reads` is a function of its rows: `forward(features)` is given (B, d), float32 or wider, without gradient,
    and gives G prompts with `rows` (B,), or one for all of them.
    """

    length: int
    """P, the number of virtual tokens that the template must make room for."""

    prefix_length: int = 0
    """Positions that a key-value prefix takes, in front of everything and beside `length`."""

    reads: ImagePooling | None = None
    """Which state of each row, from the frozen backbone without any prompt, `forward` is given; None: none."""

    pooling: ImagePooling | None = None
    """What a head reads of an image where the task does not say; None: what the backbone says."""

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
    head_only: ClassVar[bool] = False
    """It trains a head and nothing else, so the task must have one."""
    class_specific: bool = False
    """Whether each class has a context of its own, so that the prompt serves no other classes; a setting of some methods."""

    @abstractmethod
    def build(self, context: BuildContext) -> PromptModule:
        """A fresh, initialised module."""

    @abstractmethod
    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        """The module that was saved as these tensors (its baked `state_dict()`)."""

    def unsupported(self, spec: BackboneSpec) -> str | None:
        """Why this method is not defined on such a backbone, as half a sentence; None where it is."""
        return None

    def frozen_layers(self, spec: BackboneSpec) -> int | None:
        """How many layers, from the bottom on, see neither a prompt nor a trained weight: a row's states there never change.

        None: all layers and the norm behind them; only a head that reads their states is trained.
        """
        return None if self.head_only else 0

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        """The backbone that this method trains on: the frozen one itself, unless the method changes its weights.

        Then a copy of it, in which exactly the weights that are trained require a gradient. generator: for new weights.
        """
        return backbone

    def head(self, width: int, outputs: int, generator: torch.Generator) -> nn.Module:
        """The head for a task that needs one: states (n, width) -> (n, outputs), float32. By default one linear layer.

        It starts near zero, so that the first steps are not spent on unlearning a random answer.
        """
        return linear_head(width, outputs, generator)

    def head_learning_rate(self, spec: BackboneSpec) -> float:
        """Default peak learning rate of the head under AdamW."""
        return 1e-3

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Default peak learning rate of AdamW on this backbone."""
        return 0.01

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        """Optimizer groups, each with its own `lr`."""
        return [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}]


def wordless(spec: BackboneSpec) -> str | None:
    """Why a method that trains no head is not defined on a backbone that has no words to answer with; None on others."""
    if spec.image is not None and spec.vision is None:
        return "it reads images and has no words to answer with, and this method trains no head"
    if spec.family == "text-encoder":
        return "a text encoder has no words to answer with, and this method trains no head"
    return None


def unread(spec: BackboneSpec) -> str | None:
    """Why a method that needs words to be predicted is not defined on a backbone; None where they are."""
    if spec.vision is not None:
        return "it compares images with texts and predicts no words"
    return wordless(spec)


def linear_head(width: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights of N(0, 0.02^2), as BERT's heads have, and zero biases."""
    head = nn.utils.skip_init(nn.Linear, width, outputs, dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(std=0.02, generator=generator)
        head.bias.zero_()
    return head
