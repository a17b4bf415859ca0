"""DAPL learns contexts of a class's text that say its domain. Ge et al., 2022 (arXiv 2202.06687).

t_k^d = [v_1] ... [v_M1] [d_1^d] ... [d_M2^d] [name of class k],     v for all domains, d^d for all classes     (section 3.2)

The domain-agnostic context v is unified, or each class has its own (class-specific). The `soft_template` of the task says
where the names of class and domain stand. The task also says which domain a row belongs to, which texts compete in its loss,
and how much pseudo-labels weigh. `protocols.domain_adaptation` makes the pseudo-labels.
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
from softprompt.prompts.coop import CoOp

_SPREAD = 0.02  # standard deviation of the initial noise of both contexts, as in the released code


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DAPL(Method):
    """A context for all domains is trained, and after it one for each domain. The task must have `domains`."""

    length: int | None = Field(default=None, gt=0)
    """M1, the number of domain-agnostic tokens; None: that of init_text, or 16 without one."""
    domain_length: int = Field(default=16, gt=0)
    """M2, the number of tokens of each domain."""
    init_text: str | None = Field(default=None, min_length=1)
    """The initial words of the domain-agnostic context; None: noise of standard deviation 0.02."""
    class_specific: bool = False
    """Whether each class has a domain-agnostic context of its own; such a prompt serves no other classes."""

    name = "dapl"

    @model_validator(mode="after")
    def _words_say_the_length(self) -> DAPL:
        self._agnostic()
        return self

    def _agnostic(self) -> CoOp:
        return CoOp(length=self.length, init_text=self.init_text, class_specific=self.class_specific)

    def unsupported(self, spec: BackboneSpec) -> str | None:
        return self._agnostic().unsupported(spec)

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError for a task without domains, and what CoOp raises."""
        if len(context.domains) < 2:
            raise ValueError(
                'dapl learns a context of each domain, and the task has none: set domains=["source", "target"], the one that'
                " is predicted in last"
            )
        agnostic = self._agnostic().build(context)().tokens
        assert agnostic is not None
        shape = (len(context.domains), self.domain_length, context.spec.width)
        domains = torch.randn(shape, generator=context.generator) * _SPREAD
        return DomainContext(agnostic.detach(), domains, class_specific=self.class_specific)

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        return DomainContext(tensors["context"], tensors["domains"], class_specific=self.class_specific)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of CoOp. The paper's 0.003 is for SGD with momentum."""
        return self._agnostic().learning_rate(spec)


class DomainContext(PromptModule):
    """context (1, M1, d) or (K, M1, d) of K classes; domains (D, M2, d). Both float32."""

    def __init__(self, context: Tensor, domains: Tensor, *, class_specific: bool = False) -> None:
        super().__init__()
        self.context = nn.Parameter(context.float())
        self.domains = nn.Parameter(domains.float())
        self.class_specific = class_specific
        self.length = context.shape[1] + domains.shape[1]

    def forward(self) -> PromptOutput:
        """Return the prompts domain by domain, and class by class if classes have their own: G = D or D K."""
        count, classes = len(self.domains), len(self.context)
        agnostic = self.context.repeat(count, 1, 1)  # (D K, M1, d), K = 1 where unified
        specific = self.domains.repeat_interleave(classes, dim=0)  # (D K, M2, d)
        tokens = torch.cat([agnostic, specific], dim=1)
        if self.class_specific:
            return PromptOutput(tokens=tokens, texts=torch.arange(len(tokens), device=tokens.device))
        return PromptOutput(tokens=tokens, groups=count)
