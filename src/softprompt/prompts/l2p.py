"""Learning to Prompt (L2P): each image chooses prompts from a pool by its features. Wang et al., CVPR 2022 (arXiv 2112.08654).

q(x)   the class token of the frozen backbone without prompts
K_x  = argmin over {s_1 .. s_N} of  sum_i gamma(q(x), k_si),   gamma = 1 - cosine                          (3)
K_x  = argmin of  sum_i gamma(q(x), k_si) h_si,   in training, with h the shares of earlier choices    (4)
loss = CE(g(mean of what the chosen prompts become), y) + lambda sum over K_x of gamma(q(x), k_si)         (5)

Letters: B images, M prompts in the pool, P' rows of a prompt, N chosen prompts, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import BackboneSpec
from softprompt.images import ImagePooling
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule

Selection = Literal["row", "batch"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class L2P(Method):
    """A pool of prompts with keys is trained; an image uses the prompts whose keys are nearest to its frozen class token."""

    pool: int = Field(default=10, gt=0)
    """M, the number of prompts in the pool. The paper uses 10, and 20 for data sets that differ much."""
    length: int = Field(default=5, gt=0)
    """P', the number of rows of each prompt."""
    top: int = Field(default=5, gt=0)
    """N, the number of prompts that an image uses."""
    pull: float = Field(default=0.5, ge=0)
    """lambda, the weight of the term that pulls chosen keys to the images that chose them."""
    diversify: bool = False
    """Whether training chooses by equation 4: distances are weighted by how often a prompt was chosen in earlier runs, so
    that later tasks choose other prompts. Without earlier runs all weights are equal."""
    selection: Selection = "row"
    """row: each image has its own prompts. batch: all images of a batch use the N prompts that most of them chose, in
    training and afterwards, as in the released code; a prediction then depends on the other images of the batch."""
    bound: float = Field(default=1.0, gt=0)
    """The initial values of prompts and keys are uniform within +-bound; the paper does not give them."""

    name = "l2p"

    @model_validator(mode="after")
    def _there_are_so_many(self) -> L2P:
        if self.top > self.pool:
            raise ValueError(f"top is {self.top}, and the pool has {self.pool} prompts to choose from")
        return self

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is not None:
            return "its prompts are a vision tower's: load that alone, as in load_backbone(CLIPVisionModel(...), processor=...)"
        if spec.image is None:
            return (
                "prompts are chosen by what the frozen backbone makes of an image, for text take PromptTuning"
            )
        return None

    def build(self, context: BuildContext) -> PromptModule:
        spec, generator = context.spec, context.generator
        prompts = torch.empty(self.pool, self.length, spec.width)
        keys = torch.empty(self.pool, spec.state_width or spec.width)
        for tensor in (prompts, keys):
            tensor.uniform_(-self.bound, self.bound, generator=generator)
        return PromptPool(prompts, keys, self, query_of(spec))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        counts = (tensors["before"], tensors["chosen"])
        return PromptPool(tensors["prompts"], tensors["keys"], self, query_of(spec), counts)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the paper's rate for initial values within +-1, in proportion to `bound`."""
        return 0.03 * self.bound


def query_of(spec: BackboneSpec) -> ImagePooling:
    """Return the feature that is the query: the class token, or the default reading of a tower without one."""
    assert spec.image is not None
    return "class" if "class" in spec.image.poolings else spec.image.pooling


class PromptPool(PromptModule):
    """prompts (M, P', d) and keys (M, d) float32.

    before  (M,) int64, how often each prompt was chosen in earlier runs
    chosen  (M,) int64, how often it was chosen in this run; each image of a step counts N times
    """

    length = 0
    pooling = "prompts"
    before: Tensor
    chosen: Tensor

    def __init__(
        self,
        prompts: Tensor,
        keys: Tensor,
        settings: L2P,
        query: ImagePooling,
        counts: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts.float())
        self.keys = nn.Parameter(keys.float())
        self.settings = settings
        self.reads = query
        none = torch.zeros(len(keys), dtype=torch.long)
        for name, count in zip(("before", "chosen"), counts or (none, none), strict=True):
            self.register_buffer(name, count.clone())

    def tallies(self) -> Mapping[str, Tensor]:
        return {"chosen": self.chosen}

    def goes_on(self) -> None:
        """Add the choices of the last run to the counts that weigh distances in equation 4."""
        self.before += self.chosen
        self.chosen.zero_()

    def select(self, features: Tensor) -> Tensor:
        """Return the prompts of each image, (B, d) -> (B, N), the nearest first; training may choose by equation 4."""
        distance = 1 - cosines(features, self.keys.detach())
        top = self.settings.top
        weighed = self.settings.diversify and self._learns()
        picked = nearest(distance, top, self.before if weighed else None)
        if self.settings.selection == "batch":
            # The lower number wins a tie, as in the released code.
            counts = torch.bincount(picked.flatten(), minlength=len(self.keys))
            picked = counts.argsort(descending=True, stable=True)[:top].expand(len(features), -1)
        return picked

    def forward(self, features: Tensor | None = None) -> PromptOutput:
        """Return the prompts of the images. features: (B, d). Raises ValueError without features."""
        if features is None:
            raise ValueError("the prompts are chosen by the rows' features, and none were given")
        picked = self.select(features)
        each = picked[:1] if self.settings.selection == "batch" else picked
        tokens = self.prompts[each].flatten(1, 2)  # (G, N, P', d) -> (G, N P', d)
        rows = rows_carrying(len(tokens), len(features))
        if not self._learns():
            return PromptOutput(tokens=tokens, rows=rows)
        with torch.no_grad():
            self.chosen += torch.bincount(picked.flatten(), minlength=len(self.keys))
        distance = 1 - cosines(features, self.keys).gather(1, picked)  # (B, N)
        return PromptOutput(tokens=tokens, rows=rows, penalty=self.settings.pull * distance.sum(1))

    def _learns(self) -> bool:
        return torch.is_grad_enabled() and self.keys.requires_grad


def cosines(features: Tensor, keys: Tensor) -> Tensor:
    """Return the cosines of features (B, d) with keys (M, d), (B, M)."""
    return functional.normalize(features, dim=-1) @ functional.normalize(keys.to(features.dtype), dim=-1).T


def nearest(distance: Tensor, top: int, chosen: Tensor | None = None) -> Tensor:
    """Return the `top` nearest of each row, (B, M) -> (B, top), the nearest first; the lower number wins a tie.

    Arguments:
        distance: (B, M)
        top: the number that is chosen
        chosen: (M,) how often each was chosen before. Distances are weighted by these shares: what was never chosen has
            weight 0, and the nearest of those come first. None: all weights are equal
    """
    order = distance.argsort(dim=1, stable=True)  # (B, M)
    if chosen is not None and chosen.any():
        cost = (distance * (chosen / chosen.sum())).gather(1, order)
        order = order.gather(1, cost.argsort(dim=1, stable=True))
    return order[:, :top]


def rows_carrying(prompts: int, rows: int) -> Tensor:
    """Return the number of each row's prompt, (B,): its own prompt, or the only one."""
    return torch.arange(rows) if prompts == rows else torch.zeros(rows, dtype=torch.long)
