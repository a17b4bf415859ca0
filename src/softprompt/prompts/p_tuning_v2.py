"""P-tuning v2: deep prompts, keys and values of every layer trained directly. Liu et al., ACL 2022 (arXiv 2110.07602).

Every layer has P trained positions of keys and values in front (section 3.2, "deep prompt tuning"); nothing else changes.
The paper pairs them with a linear head instead of a verbalizer: here the task decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from softprompt.backbones.base import BackboneSpec
from softprompt.prompts import prefix
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.initialization import check_start


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PTuningV2(Method):
    """Trained keys and values for every layer, with dropout on them alone."""

    length: int = Field(default=20, gt=0)
    """P, positions. About 20 for simple classification, about 100 for sequence labelling (Liu et al., section 3.3)."""
    init: Literal["vocab", "text", "prompt", "random"] = "vocab"
    """Where it starts: the model's keys and values of common words or of a text, another prefix, noise of their scale."""
    init_text: str | None = None
    """With init="text": the text, repeated or cut to `length` tokens."""
    init_prompt: Path | None = None
    """With init="prompt": the folder of a saved prefix (ours or PEFT's), repeated or cut to `length`."""
    projection: bool = False
    """Whether an MLP from the embedding's width gives the prefix while it is trained (the paper's reparametrization)."""
    hidden: int = Field(default=512, gt=0)
    """Width of that MLP."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the prefix's numbers, in training; the frozen model has none."""

    name = "p-tuning-v2"

    @model_validator(mode="after")
    def _settings_go_together(self) -> PTuningV2:
        check_start(self.init, self.init_text, self.init_prompt)
        return self

    def build(self, context: BuildContext) -> PromptModule:
        spec, generator = context.spec, context.generator
        start = prefix.starting_rows(
            spec, self.length, self.init, self.init_text, self.init_prompt, generator
        )
        scale = prefix.own_scale(spec)
        rows: prefix.MLPRows | prefix.ScaledRows = prefix.ScaledRows(start, scale)
        if self.projection:
            inputs = torch.randn(self.length, spec.width, generator=generator)
            begin = None if self.init == "random" else start
            rows = prefix.MLPRows(inputs, self.hidden, begin, scale, generator)
        return prefix.KeyValuePrefix(rows, spec.key_values, dropout=self.dropout)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return prefix.restore_prefix(spec, tensors)

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return prefix.unsupported_prefix(spec)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """With the projection 1e-4; without it 0.02 standard deviations of the model's own keys and values a step."""
        return 1e-4 if self.projection else 0.02
