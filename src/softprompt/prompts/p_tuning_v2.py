"""P-tuning v2 trains deep prompts: keys and values of every layer. Liu et al., ACL 2022 (arXiv 2110.07602).

In every layer, P trained positions of keys and values stand in front (section 3.2, "deep prompt tuning"); nothing else
changes. The paper pairs them with a linear head instead of a verbalizer; here the task decides.
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
    """Keys and values of every layer are trained, with dropout on them alone."""

    length: int = Field(default=20, gt=0)
    """P, the number of positions: about 20 for simple classification and 100 for sequence labelling (section 3.3)."""
    init: Literal["vocab", "text", "prompt", "random"] = "vocab"
    """Its initial values: the model's keys and values of common words or of a text, another prefix, or noise of their scale."""
    init_text: str | None = None
    """The text of init="text", repeated or cut to `length` tokens."""
    init_prompt: Path | None = None
    """The folder of a saved prefix (ours or PEFT's) for init="prompt"; it is repeated or cut to `length`."""
    projection: bool = False
    """Whether an MLP that reads vectors of the embedding's width computes the prefix during training (a reparametrization)."""
    hidden: int = Field(default=512, gt=0)
    """Width of that MLP."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of the prefix's numbers in training; the frozen model has none."""

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
        """Return 1e-4 with the projection, and without it 0.02 standard deviations of the model's keys and values per step."""
        return 1e-4 if self.projection else 0.02
