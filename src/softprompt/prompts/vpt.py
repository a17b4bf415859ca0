"""Visual Prompt Tuning (VPT) trains rows that stand among the patches of an image. Jia et al., ECCV 2022 (arXiv 2203.12119).

shallow  [x_1, Z_1, E_1] = L_1([x_0, P, E_0]),   [x_i, Z_i, E_i] = L_i([x_{i-1}, Z_{i-1}, E_{i-1}])
deep     [x_i,  _ , E_i] = L_i([x_{i-1}, P_{i-1}, E_{i-1}])

x is the class token, E the patches, and Z the outputs of the prompts. Prompts have no positions: they are inserted after the
class token once positions are added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass as plain_dataclass
from typing import Literal

import torch
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional

from softprompt.backbones.base import BackboneSpec
from softprompt.outputs import PromptOutput
from softprompt.prompts.base import BuildContext, Method, PromptModule


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class VPT(Method):
    """Prompt rows are trained for every layer, or for the input of the first layer alone."""

    length: int = Field(default=10, gt=0)
    """P, the number of prompt rows in a layer. The paper searches 1, 5, 10, 50, 100 and 200 for each data set."""
    deep: bool = True
    """Whether every layer has new rows, whose outputs are dropped; False: rows join before the first layer and stay."""
    projection: int | None = Field(default=None, gt=0)
    """d', the width in which rows are trained; one linear layer, which all of them share, projects them to d. None: d."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the rows' numbers in training. The released runs use 0.1 for the deep form and none for the shallow form."""
    dropout_mask: Literal["row", "batch"] = "row"
    """row: each image has its own mask, as in the paper. batch: all images of a step share one mask, so that the prompts are
    still computed once for all images; the noise differs from the paper's."""
    first_layers: int | None = Field(default=None, gt=0)
    """The number of layers with deep prompts, beginning with the first; the prompts of the last one stay among the rows."""
    last_layers: int | None = Field(default=None, gt=0)
    """The number of layers with deep prompts, ending with the last; the layers before them have none."""
    dropped_after: bool = False
    """Whether the last of the first_layers drops its prompts too."""
    shared: bool = False
    """Whether all layers share one prompt."""

    name = "vpt"

    @model_validator(mode="after")
    def _settings_go_together(self) -> VPT:
        if not self.deep:
            for setting in ("first_layers", "last_layers", "dropped_after", "shared"):
                if getattr(self, setting):
                    raise ValueError(
                        f"{setting} is about prompts of layers, and deep=False has none: drop it"
                    )
        if self.first_layers is not None and self.last_layers is not None:
            raise ValueError("give first_layers or last_layers, not both")
        if self.dropped_after and self.first_layers is None:
            raise ValueError(
                "dropped_after says what happens after the last of first_layers: set first_layers too"
            )
        return self

    def frozen_layers(self, spec: BackboneSpec) -> int | None:
        return 0 if self.last_layers is None else max(0, spec.layers - self.last_layers)

    def unsupported(self, spec: BackboneSpec) -> str | None:
        if spec.image is None or not _tower(spec).layers:
            return "its prompts stand among the patches of an image, for text take PromptTuning or PTuningV2"
        return None

    def build(self, context: BuildContext) -> PromptModule:
        """Raises ValueError for more layers than the backbone has."""
        spec = _tower(context.spec)
        plan = self.plan(spec.layers)
        width = self.projection or spec.width
        bound = initial_bound(spec, width)
        prompts = torch.empty(plan.count, self.length, width).uniform_(
            -bound, bound, generator=context.generator
        )
        projection = None
        if self.projection is not None:
            projection = nn.utils.skip_init(nn.Linear, width, spec.width)
            nn.init.kaiming_normal_(projection.weight, a=0, mode="fan_out", generator=context.generator)
            nn.init.zeros_(projection.bias)
        own_masks = self.dropout_mask == "row"
        beside_text = context.spec.vision is not None
        return VisualPrompts(
            prompts, plan, projection, self.dropout, own_masks=own_masks, beside_text=beside_text
        )

    def restore(self, spec: BackboneSpec, tensors: Mapping[str, Tensor]) -> PromptModule:
        plan = self.plan(_tower(spec).layers)
        return VisualPrompts(tensors["prompts"], plan, beside_text=spec.vision is not None)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return a tenth of the standard deviation of the initial values, as for other virtual tokens.

        The paper's own rates are for SGD and are chosen from a grid for each data set.
        """
        tower = _tower(spec)
        return 0.1 * initial_bound(tower, self.projection or tower.width) / math.sqrt(3)

    def plan(self, layers: int) -> Plan:
        """Return which prompt stands in which layer. Raises ValueError for more layers than the backbone has."""
        if not self.deep:
            return Plan((None,) * layers, entry=0, entering=0)
        count = self.first_layers or self.last_layers or layers
        if count > layers:
            raise ValueError(f"prompts were asked for in {count} layers, the backbone has {layers}")
        numbers: list[int | None] = [0 if self.shared else i for i in range(count)]
        empty: list[int | None] = [None] * (layers - count)
        if self.last_layers is not None:
            return Plan((*empty, *numbers))
        # In the very last layer both are the same: no layer follows it.
        if not empty or self.dropped_after:
            return Plan((*numbers, *empty))
        return Plan((*numbers[:-1], None, *empty), entry=count - 1, entering=numbers[-1])


def _tower(spec: BackboneSpec) -> BackboneSpec:
    """Return the facts of the tower that reads images."""
    return spec if spec.vision is None else spec.vision


def initial_bound(spec: BackboneSpec, width: int) -> float:
    """Return v of U(-v, v): sqrt(6 / (3 h w + width)) for patches of h x w pixels, 0.0625 for ViT-B/16."""
    assert spec.image is not None
    height, breadth = spec.image.patch
    return math.sqrt(6 / (3 * height * breadth + width))


@plain_dataclass(frozen=True)
class Plan:
    """Where prompts stand.

    layers    for each layer the number of the prompt that is dropped after it; None: there is none
    entry     the layer before which a prompt joins the rows and stays; None: there is none
    entering  the number of that prompt
    """

    layers: tuple[int | None, ...]
    entry: int | None = None
    entering: int | None = None

    @property
    def count(self) -> int:
        """The number of different prompts."""
        return 1 + max(number for number in (*self.layers, self.entering) if number is not None)


class VisualPrompts(PromptModule):
    """prompts (n, P, d') float32, where n is the number of prompts in the plan; projection d' -> d.

    own_masks    whether dropout has a mask for each image; False: one mask for all, drawn here
    beside_text  whether the backbone has a text tower too, which does not see the prompts
    """

    length = 0

    def __init__(
        self,
        prompts: Tensor,
        plan: Plan,
        projection: nn.Linear | None = None,
        dropout: float = 0.0,
        *,
        own_masks: bool = True,
        beside_text: bool = False,
    ) -> None:
        super().__init__()
        self.prompts = nn.Parameter(prompts.float())
        self.projection = projection
        self.plan = plan
        self.dropout = dropout
        self.own_masks = own_masks
        self.beside_text = beside_text

    def projected(self) -> Tensor:
        """Return the projected prompts, (n, P, d)."""
        return self.prompts if self.projection is None else self.projection(self.prompts)

    def forward(self) -> PromptOutput:
        prompts = self.projected()
        if self.dropout and not self.own_masks and torch.is_grad_enabled():
            prompts = functional.dropout(prompts, self.dropout)
        plan = self.plan
        none = prompts[:1, :0]  # (1, 0, d)
        layers = tuple(none if i is None else prompts[i : i + 1] for i in plan.layers)
        entering = plan.entering
        output = PromptOutput(
            tokens=None if entering is None else prompts[entering : entering + 1],
            layers=layers if any(i is not None for i in plan.layers) else None,
            entry=plan.entry or 0,
            dropout=self.dropout if self.own_masks else 0.0,
        )
        return PromptOutput(vision=output) if self.beside_text else output

    def bake(self) -> VisualPrompts:
        return VisualPrompts(self.projected().detach().clone(), self.plan, beside_text=self.beside_text)
