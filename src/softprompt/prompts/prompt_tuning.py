"""Prompt Tuning trains P free vectors in front of the input. Lester, Al-Rfou, Constant, EMNLP 2021 (arXiv 2104.08691).

max over P_e of  Pr(Y | [P_e; E(x)]),   P_e in R^(P x d); everything else is frozen     (section 2)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts import initialization as initial
from softprompt.prompts.base import BuildContext, Method, PromptModule


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PromptTuning(Method):
    """Trained virtual tokens stand in the soft slots of the template, by default in front."""

    length: int = Field(default=20, gt=0)
    """P, the number of virtual tokens. More than 20 gain little, and more than 100 hurt large models (figure 3a)."""
    init: initial.Init = "auto"
    """Their initial values: common words (vocab), noise of the table's scale (uniform), a text, the class labels, or another
    prompt. auto: the class labels if the task has any, else common words, as in the paper."""
    init_text: str | None = None
    """The text of init="text"; its tokens are repeated or cut to `length`."""
    init_prompt: Path | None = None
    """The folder of a saved prompt (ours or PEFT's) for init="prompt"; its tokens are repeated or cut to `length`."""

    name = "prompt-tuning"

    @model_validator(mode="after")
    def _text_and_prompt_go_with_their_init(self) -> PromptTuning:
        initial.check_start(self.init, self.init_text, self.init_prompt)
        return self

    def build(self, context: BuildContext) -> PromptModule:
        tokens = initial.start(context, self.length, self.init, self.init_text, self.init_prompt)
        return VirtualTokens(tokens)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return VirtualTokens(tensors["tokens"])

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return a tenth of the embedding table's standard deviation: AdamW moves each number by about this much per step.

        Three times this rate fails on one of four data sets; docs/results/foundation.md has the figures.
        """
        return 0.1 * spec.embedding_std


class VirtualTokens(PromptModule):
    """P free vectors, (P, d) float32."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(tokens.float())
        self.length = len(tokens)

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=self.tokens[None])  # (P, d) -> (1, P, d)


def baked(module: PromptModule) -> VirtualTokens:
    """Return the virtual tokens that a module computes, without the parts that compute them."""
    with torch.no_grad():
        tokens = module().tokens
    assert tokens is not None
    return VirtualTokens(tokens[0].clone())
