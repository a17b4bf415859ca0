"""CoOp learns the context words of a class's text. Zhou, Yang, Loy, Liu, IJCV 2022 (arXiv 2109.01134).

t_k = [V_1] ... [V_M] [name of class k],   p(k | x) = softmax over k of cos(g(t_k), f(x)) / tau     (equations 2 to 4)

A unified context serves all classes; in a class-specific one (CSC), V_m depends on k. g and f, the towers of a dual encoder,
are frozen, and so is tau. The `soft_template` of the task says where the name stands.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule

_USUAL = 16  # M of the paper's main results
_SPREAD = 0.02  # standard deviation of a context's initial noise (section 4.1)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoOp(Method):
    """Virtual tokens are trained in the texts that images are compared with."""

    length: int | None = Field(default=None, gt=0)
    """M, the number of context tokens; None: that of init_text, or 16. The paper uses 4 for domain generalisation."""
    init_text: str | None = Field(default=None, min_length=1)
    """The initial words, such as "a photo of a"; None: noise of standard deviation 0.02."""
    class_specific: bool = False
    """Whether each class has a context of its own (CSC); such a prompt serves no other classes."""

    name = "coop"

    @model_validator(mode="after")
    def _words_say_the_length(self) -> CoOp:
        if self.init_text is not None and self.length is not None:
            raise ValueError(
                f"init_text {self.init_text!r} says how long the context is, and so does length={self.length}: leave one out"
            )
        return self

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is None:
            return "its context stands in the texts that a dual encoder compares images with, for others take PromptTuning"
        return None

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError for an init_text without tokens, and for class_specific where the task has no labels."""
        spec = context.spec
        contexts = len(context.labels) if self.class_specific else 1
        if not contexts:
            raise ValueError("class_specific=True needs the classes, and the task has no labels")
        if self.init_text is not None:
            ids = spec.tokenize(self.init_text)
            if not ids:
                raise ValueError(f"init_text {self.init_text!r} has no tokens")
            words = spec.embed(torch.tensor(ids))  # (M, d)
            return Context(words.expand(contexts, -1, -1).clone(), class_specific=self.class_specific)
        length = _USUAL if self.length is None else self.length
        noise = torch.randn(contexts, length, spec.width, generator=context.generator) * _SPREAD
        return Context(noise, class_specific=self.class_specific)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return Context(tensors["context"], class_specific=self.class_specific)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return a tenth of the standard deviation of the noise, as for other virtual tokens.

        The paper's 0.002 is for SGD with momentum.
        """
        return 0.1 * _SPREAD


class Context(PromptModule):
    """context (1, M, d) float32, or (K, M, d) where each class has its own."""

    def __init__(self, context: Tensor, *, class_specific: bool = False) -> None:
        super().__init__()
        self.context = nn.Parameter(context.float())
        self.length = context.shape[1]
        self.class_specific = class_specific

    def forward(self) -> PromptOutput:
        texts = torch.arange(len(self.context), device=self.context.device) if self.class_specific else None
        return PromptOutput(tokens=self.context, texts=texts)
