"""DualPrompt trains a key-value prefix for all images, and one for those of each task.

Wang et al., ECCV 2022 (arXiv 2204.04799):

Attn(Q, [p_K; K], [p_V; V]),   p = g, the general prompt, in the first layers, p = e_t, an expert, in the next
loss = CE(f(x; g, e_t), y) + lambda gamma(q(x), k_t),   gamma = 1 - cosine, q(x) the frozen backbone's class token
in use  t = argmin_t gamma(q(x), k_t)

Letters: B images, M experts, P rows of a prefix, H heads, D head size, d width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from softprompt.backbones.base import BackboneSpec
from softprompt.images import ImagePooling
from softprompt.outputs import KeyValue, PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.l2p import cosines, nearest, query_of, rows_carrying


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DualPrompt(Method):
    """The first layers have a general prefix, and the next ones the prefix of the expert nearest to the image."""

    general: int = Field(default=5, gt=0)
    """The number of rows of the general prefix in a layer."""
    general_layers: int = Field(default=2, gt=0)
    """The number of layers that have it, beginning with the first."""
    expert: int = Field(default=5, gt=0)
    """The number of rows of an expert's prefix in a layer."""
    expert_layers: int = Field(default=3, gt=0)
    """The number of layers that have one, after those of the general prefix."""
    pool: int = Field(default=10, gt=0)
    """M, the number of experts. In the paper there is one for each task."""
    task: int | None = Field(default=None, ge=0)
    """In training, all images use the expert with this number, and its key is pulled to them, as in the paper. None: each
    image uses its nearest expert, as after training."""
    pull: float = Field(default=1.0, ge=0)
    """lambda, the weight of the term that pulls keys to images."""
    bound: float = Field(default=1.0, gt=0)
    """The initial values of prefixes and keys are uniform within +-bound."""

    name = "dual-prompt"

    @model_validator(mode="after")
    def _the_task_has_an_expert(self) -> DualPrompt:
        if self.task is not None and self.task >= self.pool:
            raise ValueError(
                f"task is {self.task}, and there are {self.pool} experts, numbered from 0: enlarge pool"
            )
        return self

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is not None:
            return "its prompts are a vision tower's: load that alone, as in load_backbone(CLIPVisionModel(...), processor=...)"
        if spec.image is None:
            return "its experts are chosen by what the frozen backbone makes of an image, for text take PTuningV2"
        if not spec.key_values:
            return "its attention cannot be reached, and prefixes are keys and values"
        return None

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError for more layers than the backbone has."""
        spec, generator = context.spec, context.generator
        if self.general_layers + self.expert_layers > len(spec.key_values):
            raise ValueError(
                f"prefixes were asked for in {self.general_layers} + {self.expert_layers} layers, the backbone has"
                f" {len(spec.key_values)}"
            )
        heads, size = spec.key_values[0]
        general = torch.empty(self.general_layers, 2, heads, self.general, size)
        experts = torch.empty(self.expert_layers, 2, self.pool, heads, self.expert, size)
        keys = torch.empty(self.pool, spec.state_width or spec.width)
        for tensor in (general, experts, keys):
            tensor.uniform_(-self.bound, self.bound, generator=generator)
        return DualPrefixes(general, experts, keys, self, len(spec.key_values), query_of(spec))

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        general, experts, keys = (tensors[name] for name in ("general", "experts", "keys"))
        return DualPrefixes(general, experts, keys, self, len(spec.key_values), query_of(spec))

    def for_task(self, number: int) -> DualPrompt:
        """Return the method with the expert of this task. Raises ValueError (pydantic's) if there is none left."""
        return replace(self, task=number)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of L2P, in proportion to `bound`."""
        return 0.03 * self.bound


class DualPrefixes(PromptModule):
    """general (layers, 2, H, P, D), experts (layers, 2, M, H, P, D), keys and values; keys (M, d); float32.

    layers: the number of layers of the backbone
    """

    length = 0

    def __init__(
        self,
        general: Tensor,
        experts: Tensor,
        keys: Tensor,
        settings: DualPrompt,
        layers: int,
        query: ImagePooling,
    ) -> None:
        super().__init__()
        self.general = nn.Parameter(general.float())
        self.experts = nn.Parameter(experts.float())
        self.keys = nn.Parameter(keys.float())
        self.settings = settings
        self.layers = layers
        self.reads = query

    def select(self, features: Tensor) -> Tensor:
        """Return the expert of each image, (B, d) -> (B, 1); in training it is that of the task, if the task is known."""
        if (task := self._task()) is not None:
            return torch.full((len(features), 1), task, device=features.device)
        return nearest(1 - cosines(features, self.keys.detach()), 1)

    def forward(self, features: Tensor | None = None) -> PromptOutput:
        """Return the prefixes of the images. features: (B, d). Raises ValueError without features."""
        if features is None:
            raise ValueError("the experts are chosen by the rows' features, and none were given")
        picked = self.select(features)  # (B, 1)
        which = picked[: 1 if self._task() is not None else None, 0]  # (G,)
        prefix: list[KeyValue] = [(key[None], value[None]) for key, value in self.general]
        prefix += [(key[which], value[which]) for key, value in self.experts]  # (G, H, P, D)
        none = self.general[:1, 0, :, :0]  # (1, H, 0, D)
        prefix += [(none, none)] * (self.layers - len(prefix))
        penalty = None
        if self._learns():
            distance = 1 - cosines(features, self.keys).gather(1, picked)[:, 0]  # (B,)
            penalty = self.settings.pull * distance
        return PromptOutput(
            prefix=tuple(prefix), rows=rows_carrying(len(which), len(features)), penalty=penalty
        )

    def _learns(self) -> bool:
        return torch.is_grad_enabled() and self.keys.requires_grad

    def _task(self) -> int | None:
        return self.settings.task if self._learns() else None
