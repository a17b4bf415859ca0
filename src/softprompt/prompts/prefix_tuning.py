"""Prefix-Tuning: keys and values in front of every layer. Li & Liang, ACL 2021 (arXiv 2101.00190).

h_i = P_theta[i, :] for the positions i of the prefix, else LM(z_i, h_<i)      (section 4.2)
P_theta[i, :] = MLP(P'_theta[i, :]), the MLP thrown away after training        (section 4.3)

With `reparametrize=False` the keys and values themselves are trained; with `frozen=1` besides, that is a Cartridge
(arXiv 2506.06266): it starts as the keys and values of a text, whose first position, an attention
sink, stays as it is.
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
class PrefixTuning(Method):
    """A prefix of keys and values for every layer and every kind of attention of the model."""

    length: int = Field(default=10, gt=0)
    """P, positions of the prefix. 10 is best for table-to-text, 200 for summaries (Li & Liang, section 7.1)."""
    init: Literal["vocab", "text", "prompt", "random"] = "vocab"
    """Where it starts: the model's keys and values of common words or of a text, another prefix, noise of their scale."""
    init_text: str | None = None
    """With init="text": the text, repeated or cut to `length` tokens; a BOS must be written out, as in "<s>Review:"."""
    init_prompt: Path | None = None
    """With init="prompt": the folder of a saved prefix (ours or PEFT's), repeated or cut to `length`."""
    reparametrize: bool = True
    """Whether an MLP gives the prefix while it is trained; False: its numbers are trained directly."""
    hidden: int = Field(default=512, gt=0)
    """k, width of the MLP and of what it reads. 512 in the paper's table-to-text runs, 800 for summaries."""
    frozen: int = Field(default=0, ge=0)
    """First positions that stay as they start: 1 keeps the attention sink of a text (Cartridges)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the prefix's numbers, in training."""

    name = "prefix-tuning"

    @model_validator(mode="after")
    def _settings_go_together(self) -> PrefixTuning:
        check_start(self.init, self.init_text, self.init_prompt)
        if self.frozen >= self.length:
            raise ValueError(f"frozen={self.frozen} leaves nothing to train of length={self.length}")
        if self.frozen and self.init == "random":
            raise ValueError(f'frozen={self.frozen} would keep noise: choose another init than "random"')
        return self

    def build(self, context: BuildContext) -> PromptModule:
        spec, generator = context.spec, context.generator
        start = prefix.starting_rows(
            spec, self.length, self.init, self.init_text, self.init_prompt, generator
        )
        frozen, start = (start[: self.frozen], start[self.frozen :]) if self.frozen else (None, start)
        scale = prefix.own_scale(spec)
        rows: prefix.MLPRows | prefix.ScaledRows
        if self.reparametrize:
            inputs = torch.randn(len(start), self.hidden, generator=generator)
            begin = None if self.init == "random" else start
            rows = prefix.MLPRows(inputs, self.hidden, begin, scale, generator)
        else:
            rows = prefix.ScaledRows(start, scale)
        return prefix.KeyValuePrefix(rows, spec.key_values, frozen, self.dropout)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return prefix.restore_prefix(spec, tensors)

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return prefix.unsupported_prefix(spec)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """With the MLP 1e-4; without it 0.02 standard deviations of the model's own keys and values a step.

        The same on every model, because the prefix is trained in units of its own keys and values. A unit of the MLP's
        output moves about k / 2 times the rate, so the two move the prefix alike.
        """
        return 1e-4 if self.reparametrize else 0.02
