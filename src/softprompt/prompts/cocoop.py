"""CoCoOp learns a context that depends on the image. Zhou, Yang, Loy, Liu, CVPR 2022 (arXiv 2203.05557).

V_m(x) = V_m + pi,  pi = h(x),     h: d_x -> d_x / 16 -> ReLU -> d,     x the image's embedding, of length 1     (section 3.2)

t_k(x) = [V_1(x)] ... [V_M(x)] [name of class k]. The same shift pi is added to every token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import BackboneSpec
from softprompt.images import ImagePooling
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.coop import CoOp


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoCoOp(Method):
    """A small network shifts CoOp's context for each image. The released runs begin with "a photo of a"."""

    length: int | None = Field(default=None, gt=0)
    """M, the number of context tokens; None: that of init_text, or 16 without one."""
    init_text: str | None = Field(default=None, min_length=1)
    """The initial words, such as "a photo of a"; None: noise of standard deviation 0.02."""
    reduction: int = Field(default=16, gt=0)
    """The network is this many times narrower than the image's embedding."""

    name = "cocoop"

    @model_validator(mode="after")
    def _words_say_the_length(self) -> CoCoOp:
        self._context()
        return self

    def _context(self) -> CoOp:
        return CoOp(length=self.length, init_text=self.init_text)

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return self._context().unsupported(spec)

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError for an init_text without tokens, and for a reduction that leaves nothing of the network."""
        spec, generator = context.spec, context.generator
        tokens = self._context().build(context)().tokens
        assert tokens is not None
        assert spec.embedding_width is not None
        hidden = spec.embedding_width // self.reduction
        if not hidden:
            raise ValueError(
                f"reduction is {self.reduction}, and the image's embedding has {spec.embedding_width} numbers: nothing would be"
                " left"
            )
        tensors = {"context": tokens[0].detach()}
        for name, inputs, outputs in (("down", spec.embedding_width, hidden), ("up", hidden, spec.width)):
            bound = 1 / math.sqrt(
                inputs
            )  # the initial values of torch's linear layers, which the released code uses
            for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                tensors[f"{name}.{part}"] = torch.empty(shape).uniform_(-bound, bound, generator=generator)
        return ConditionalContext(tensors)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return ConditionalContext(tensors)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of CoOp."""
        return self._context().learning_rate(spec)


class ConditionalContext(PromptModule):
    """context (M, d); down (e / r, e) and up (d, e / r), with biases. All float32."""

    reads: ImagePooling | None = "embedding"

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.context = nn.Parameter(tensors["context"].float())
        self.down, self.up = (
            _linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in ("down", "up")
        )
        self.length = len(self.context)

    def forward(self, features: Tensor | None = None) -> PromptOutput:
        """Return a context for each image. features: (B, e), of length 1. Raises ValueError without them."""
        if features is None:
            raise ValueError("the context is a function of the image: there is none without images")
        features = features.to(self.down.weight.dtype)
        shift = self.up(functional.relu(self.down(features)))  # (B, e) -> (B, d)
        rows = torch.arange(len(features), device=features.device)
        return PromptOutput(tokens=self.context + shift[:, None], rows=rows)  # (B, M, d)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=torch.float32)
    layer.weight = nn.Parameter(weight.float())
    layer.bias = nn.Parameter(bias.float())
    return layer
