"""Side-tuning trains a small network beside the frozen one. Zhang et al., ECCV 2020 (arXiv 1912.13503).

h(x) <- s(a) h(x) + (1 - s(a)) g(x)

Here s is the logistic function, a is a trained number, and g is the side network on pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from itertools import pairwise
from typing import Any

import torch
from pydantic import ConfigDict, field_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, sharing_copy, trained_dtype
from softprompt.images import normalized
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits
from softprompt.surroundings import own_generators

SHIPPED = "conv-net"


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SideTuning(NoPrompt):
    """A network on pixels is trained, whose output is blended with what the head reads of the frozen backbone.

    The initial blend is even, a = 0, as in the released code of VPT, whose side network is a pretrained AlexNet. The network
    runs in eval mode, in which batch statistics and dropout layers have no effect.
    Raises ValueError for a network that is not found, and for one whose output has another width.
    """

    network: str = SHIPPED
    """A class of modules. It is called with d, and its module maps pixels, normalised as for the backbone, to vectors:
    (B, 3, H, W) -> (B, d). "conv-net", or a class of your own, also as "package.module:Class"."""

    name = "side-tuning"

    @field_validator("network", mode="before")
    @classmethod
    def _class_to_name(cls, network: Any) -> Any:
        if isinstance(network, type):
            return f"{network.__module__}:{network.__qualname__}"
        return network

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.vision is not None:
            return "its side network stands beside a vision tower: load that alone"
        return "its side network reads pixels, and this backbone reads none" if spec.image is None else None

    def frozen_layers(self, spec: BackboneSpec) -> int | None:
        return None

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        kind = network_class(self.network)
        with own_generators():  # modules draw from the global generator
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            width = backbone.spec.state_width or backbone.spec.width
            side = Side(kind(width), width)
        model = sharing_copy(backbone.model)
        model.add_module("side", side.to(backbone.device, trained_dtype(backbone.dtype)).eval())
        return SideBackbone(backbone.with_model(model))

    def learning_rate(self, spec: BackboneSpec) -> float:
        return 1e-3


class Side(nn.Module):
    """The side network, and the number that says how its output is blended."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.width = width
        self.network = network.requires_grad_(True)
        self.alpha = nn.Parameter(torch.zeros(()))

    def look(self, pixels: Tensor) -> Tensor:
        """Return the network's output for images, (B, 3, H, W) -> (B, d). Raises ValueError for one of another shape."""
        seen: Tensor = self.network(pixels.to(self.alpha.dtype))
        if seen.shape != (len(pixels), self.width):
            raise ValueError(
                f"the side network {type(self.network).__name__} makes {tuple(seen.shape)} of {len(pixels)} images, expected "
                f"({len(pixels)}, {self.width}): one vector of the width that it is called with for each"
            )
        return seen

    def forward(self, states: Tensor, seen: Tensor) -> Tensor:
        """Return the blend of states (n, d) and outputs (n, d), (n, d)."""
        share = torch.sigmoid(self.alpha)
        return share * states.to(seen.dtype) + (1 - share) * seen


class ConvNet(nn.Module):
    """A network (B, 3, H, W) -> (B, outputs): four convolutions that halve the image, the mean over positions, a linear layer.

    It normalises by groups, so that the output for an image does not depend on the other images.
    """

    WIDTHS = (3, 32, 64, 128, 256)

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(self.WIDTHS)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for width in self.WIDTHS[1:])
        self.last = nn.Linear(self.WIDTHS[-1], outputs, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = functional.gelu(norm(convolution(x)))
        outputs: Tensor = self.last(x.mean(dim=(2, 3)))
        return outputs


def network_class(name: str) -> type[nn.Module]:
    """Return the class of a side network. Raises ValueError if the name does not lead to one.

    The name may come from a saved prompt, so nothing is imported here, and nothing but a class of modules is returned.
    """
    if name == SHIPPED:
        return ConvNet
    module, _, path = name.partition(":")
    if module not in sys.modules:
        raise ValueError(
            f"network is {name!r}, and {module!r} is not imported: import it first, or pass the class; shipped is {SHIPPED!r}"
        )
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(
            f"network is {name!r}, which is not a subclass of torch.nn.Module: name one as 'package.module:Class'"
        )
    return found


@plain_dataclass(frozen=True, eq=False)
class SideBackbone:
    """A backbone whose states are blended with the output of the side network in its model for the same images."""

    base: Backbone

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def spec(self) -> BackboneSpec:
        return self.base.spec

    @property
    def table(self) -> Tensor:
        return self.base.table

    @property
    def model(self) -> PreTrainedModel:
        return self.base.model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer

    @property
    def dtype(self) -> torch.dtype:
        return self.base.dtype

    @property
    def device(self) -> torch.device:
        return self.base.device

    def with_model(self, model: PreTrainedModel) -> SideBackbone:
        return SideBackbone(self.base.with_model(model))

    def with_settings(self, *, gradient_checkpointing: bool = False, compiled: bool = False) -> SideBackbone:
        settings = {"gradient_checkpointing": gradient_checkpointing, "compiled": compiled}
        return SideBackbone(self.base.with_settings(**settings))

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """Return the blend, (sum of len(row.read), d), float32, differentiable in the side network and its share."""
        states = self.base.states(rows, prompt)
        image, side = self.spec.image, self.model.get_submodule("side")
        assert image is not None
        assert isinstance(side, Side)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for b, row in enumerate(rows):
            assert row.media is not None  # the base refuses other rows
            groups.setdefault((row.media.shape, row.media.dtype), []).append(b)
        seen: dict[int, Tensor] = {}
        for members in groups.values():
            pixels = torch.stack([media for b in members if (media := rows[b].media) is not None])
            mine = side.look(normalized(pixels.to(self.device), image.rule, side.alpha.dtype))
            seen |= dict(zip(members, mine, strict=True))
        return side(states, torch.stack([seen[b] for b, row in enumerate(rows) for _ in row.read]))

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Any:
        return self.base.compile(rows, prompt)

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
        return self.base.score(rows, prompt)

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        return self.base.generate(rows, prompt, **options)
