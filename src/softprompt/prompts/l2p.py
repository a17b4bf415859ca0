"""Learning to Prompt: each image picks prompts from a pool by its look. Wang et al., CVPR 2022 (arXiv 2112.08654).

q(x)   the class token of the frozen backbone without prompts
K_x  = argmin over {s_1 .. s_N} of  sum_i gamma(q(x), k_si),   gamma = 1 - cosine                          (3)
K_x  = argmin of  sum_i gamma(q(x), k_si) h_si,   in training, h the shares in which prompts were chosen before    (4)
loss = CE(g(mean of what the chosen prompts become), y) + lambda sum over K_x of gamma(q(x), k_si)         (5)

Letters: B images, M prompts in the pool, P' rows of each, N chosen, d width.
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
    """A pool of prompts with keys; an image carries those whose keys its frozen class token is nearest to."""

    pool: int = Field(default=10, gt=0)
    """M, prompts in the pool. The paper has 10, and 20 for data sets that differ much."""
    length: int = Field(default=5, gt=0)
    """P', rows of each prompt."""
    top: int = Field(default=5, gt=0)
    """N, prompts that an image carries."""
    pull: float = Field(default=0.5, ge=0)
    """lambda, weight of the term that pulls chosen keys to the images that chose them."""
    diversify: bool = False
    """In training choose by equation 4: distances are weighted by how often a prompt was chosen before this run, so that
    later tasks take others. Without earlier runs all weigh the same."""
    selection: Selection = "row"
    """Whether each image has its own prompts, or all images of a batch carry the N that most of them chose, in training
    and in use, as in the released code: then what is predicted depends on what else stands in the batch."""
    bound: float = Field(default=1.0, gt=0)
    """Prompts and keys start uniform within +-bound; the paper does not say."""

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
        """The paper's, for prompts and keys that start within +-1."""
        return 0.03 * self.bound


def query_of(spec: BackboneSpec) -> ImagePooling:
    """What the query is: the class token, on towers that have none what they are read by."""
    assert spec.image is not None
    return "class" if "class" in spec.image.poolings else spec.image.pooling


class PromptPool(PromptModule):
    """prompts (M, P', d) and keys (M, d) float32.

    before  (M,) int64, how often each prompt was chosen in runs before this one
    chosen  (M,) int64, in this one; each image of a step counts N times
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
        """What was chosen in the runs so far becomes what equation 4 weighs by."""
        self.before += self.chosen
        self.chosen.zero_()

    def select(self, features: Tensor) -> Tensor:
        """The prompts that images carry, (B, d) -> (B, N), the nearest first; in training by equation 4, where asked for."""
        distance = 1 - cosines(features, self.keys.detach())
        top = self.settings.top
        weighed = self.settings.diversify and self._learns()
        picked = nearest(distance, top, self.before if weighed else None)
        if self.settings.selection == "batch":
            # Of equal counts the lower number, as in the released code.
            counts = torch.bincount(picked.flatten(), minlength=len(self.keys))
            picked = counts.argsort(descending=True, stable=True)[:top].expand(len(features), -1)
        return picked

    def forward(self, features: Tensor | None = None) -> PromptOutput:
        """features: (B, d). Raises ValueError without."""
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
    """(B, d), (M, d) -> (B, M)."""
    return functional.normalize(features, dim=-1) @ functional.normalize(keys.to(features.dtype), dim=-1).T


def nearest(distance: Tensor, top: int, chosen: Tensor | None = None) -> Tensor:
    """The `top` nearest of each row, (B, M) -> (B, top), the nearest first, of equally near ones the lower number.

    chosen: (M,) how often each was chosen before. Distances are weighed by these shares; what was never chosen costs
    nothing wherever it lies, and of those the nearest are taken.
    """
    order = distance.argsort(dim=1, stable=True)  # (B, M)
    if chosen is not None and chosen.any():
        cost = (distance * (chosen / chosen.sum())).gather(1, order)
        order = order.gather(1, cost.argsort(dim=1, stable=True))
    return order[:, :top]


def rows_carrying(prompts: int, rows: int) -> Tensor:
    """Which prompt each of B rows carries, (B,): its own, or the one that there is."""
    return torch.arange(rows) if prompts == rows else torch.zeros(rows, dtype=torch.long)
