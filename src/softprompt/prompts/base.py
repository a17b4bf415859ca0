"""A method is a set of settings that build a module, whose forward returns a PromptOutput."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.images import ImagePooling
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.plain_settings import PlainSettings
from softprompt.truth_values import numbers_apart


@dataclass(frozen=True)
class BuildContext:
    """All that a method may use when it builds its module.

    spec       the facts of the backbone
    labels     label -> its words, if the task has labels (for class-label initialisation)
    rows       returns the training rows, encoded without virtual tokens and with their answers (for demonstrations)
    generator  the only source of randomness, on the CPU
    domains    the names of the task's domains, if it has any
    """

    spec: BackboneSpec
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rows: Callable[[], Sequence[EncodedRow]] = tuple
    generator: torch.Generator = field(default_factory=torch.Generator)
    domains: Sequence[str] = ()


class PromptModule(nn.Module):
    """The trained part of a method. Its parameters are float32 in every precision of the backbone.

    A module with `reads` is a function of its rows: `forward(features)` receives (B, d), float32 or wider, without gradient,
    and returns G prompts with `rows` (B,), or one prompt for all rows.
    """

    length: int
    """P, the number of virtual tokens that the template must make room for."""

    prefix_length: int = 0
    """The number of positions of a key-value prefix, which stands in front of everything and is not part of `length`."""

    reads: ImagePooling | None = None
    """The feature of each row that `forward` receives, computed by the frozen backbone without a prompt; None: none."""

    pooling: ImagePooling | None = None
    """What a head reads of an image if the task does not say; None: the backbone's own default."""

    def forward(self) -> PromptOutput:
        """Return the prompt of this task, with G = 1 and `rows` None."""
        raise NotImplementedError

    def bake(self) -> PromptModule:
        """Return the module in the form that is saved, without reparametrizations. By default this is the module itself."""
        return self


class Method(metaclass=PlainSettings):
    """The settings of a method: an immutable (pydantic) dataclass that depends neither on the backbone nor on the task."""

    __get_pydantic_core_schema__: ClassVar[Any] = classmethod(numbers_apart)

    name: ClassVar[str]
    """The name of the method in configs, files and on the command line, such as `prompt-tuning`."""
    head_only: ClassVar[bool] = False
    """Whether the method trains a head and nothing else, so that the task must have one."""
    class_specific: bool = False
    """Whether each class has a context of its own, so that the prompt serves no other classes. Some methods set it."""

    @abstractmethod
    def build(self, context: BuildContext) -> PromptModule:
        """Return a new module with its initial values."""

    @abstractmethod
    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        """Return the module that was saved as these tensors (its baked `state_dict()`)."""

    def unsupported(self, spec: BackboneSpec) -> str | None:
        """Return why this method is not defined on a backbone, as half a sentence; None if it is defined."""
        return None

    def frozen_layers(self, spec: BackboneSpec) -> int | None:
        """Return how many layers, counted from the bottom, see neither a prompt nor a trained weight.

        Their features of a row never change, so that they can be cached. None: all layers and the norm after them are
        frozen, and only what follows the reading of a head is trained.
        """
        return None if self.head_only else 0

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        """Return the backbone that this method trains on: the frozen one itself, unless the method changes its weights.

        A method that changes weights returns a copy in which exactly the trained weights require a gradient.
        generator: draws new weights
        """
        return backbone

    def head(self, width: int, outputs: int, generator: torch.Generator) -> nn.Module:
        """Return the head for a task that needs one: states (n, width) -> (n, outputs), float32. By default it is linear.

        Its initial values are near zero, so that the first steps are not spent on unlearning a random answer.
        """
        return linear_head(width, outputs, generator)

    def head_learning_rate(self, spec: BackboneSpec) -> float:
        """Return the default peak learning rate of the head, for AdamW."""
        return 1e-3

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the default peak learning rate on this backbone, for AdamW."""
        return 0.01

    def parameter_groups(self, module: PromptModule, lr: float) -> list[dict[str, Any]]:
        """Return the optimizer's groups, each with its own `lr`; `lr` is the peak learning rate of the prompt."""
        return [{"params": [p for p in module.parameters() if p.requires_grad], "lr": lr}]


def wordless(spec: BackboneSpec) -> str | None:
    """Return why a method without a head is not defined on a backbone without words to answer with; None on others."""
    if spec.image is not None and spec.vision is None:
        return "it reads images and has no words to answer with, and this method trains no head"
    if spec.family == "text-encoder":
        return "a text encoder has no words to answer with, and this method trains no head"
    return None


def unread(spec: BackboneSpec) -> str | None:
    """Return why a method that needs predicted words is not defined on a backbone; None if it is defined."""
    if spec.vision is not None:
        return "it compares images with texts and predicts no words"
    return wordless(spec)


def linear_head(width: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """Return a linear layer with weights from N(0, 0.02^2), as in the heads of BERT, and zero biases."""
    head = nn.utils.skip_init(nn.Linear, width, outputs, dtype=torch.float32)
    with torch.no_grad():
        head.weight.normal_(std=0.02, generator=generator)
        head.bias.zero_()
    return head
