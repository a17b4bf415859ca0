"""Prefix-Tuning trains keys and values in front of every layer. Li & Liang, ACL 2021 (arXiv 2101.00190).

h_i = P_theta[i, :] for the positions i of the prefix, else LM(z_i, h_<i)      (section 4.2)
P_theta[i, :] = MLP(P'_theta[i, :]); the MLP is dropped after training         (section 4.3)

With `reparametrize=False` the keys and values themselves are trained. With `frozen=1` and init="text" too, this is a
Cartridge (arXiv 2506.06266): its initial values are the keys and values of a text, whose first position, an attention sink,
is frozen.
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
    """A prefix of keys and values is trained for every layer and every kind of attention of the model."""

    length: int = Field(default=10, gt=0)
    """P, the number of positions. 10 is best for table-to-text, 200 for summaries (Li & Liang, section 7.1)."""
    init: Literal["vocab", "text", "prompt", "random"] = "vocab"
    """Its initial values: the model's keys and values of common words or of a text, another prefix, or noise of their scale."""
    init_text: str | None = None
    """The text of init="text", repeated or cut to `length` tokens; a BOS must be written out, as in "<s>Review:"."""
    init_prompt: Path | None = None
    """The folder of a saved prefix (ours or PEFT's) for init="prompt"; it is repeated or cut to `length`."""
    reparametrize: bool = True
    """Whether an MLP computes the prefix during training; False: its numbers are trained directly."""
    hidden: int = Field(default=512, gt=0)
    """k, the width of the MLP and of its input. The paper uses 512 for table-to-text and 800 for summaries."""
    frozen: int = Field(default=0, ge=0)
    """The number of frozen positions at the front, which keep their initial values: 1 keeps the attention sink of a text."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the prefix's numbers in training."""

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
        """Return 1e-4 with the MLP, and without it 0.02 standard deviations of the model's own keys and values per step.

        The rate is the same on every model, because the prefix is trained in units of its keys and values. An output of the
        MLP moves by about k / 2 times the rate, so that both rates move the prefix equally fast.
        """
        return 1e-4 if self.reparametrize else 0.02
