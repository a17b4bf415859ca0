"""LoRA trains low-rank changes of linear layers. Hu et al., ICLR 2022 (arXiv 2106.09685), by the library peft.

W <- W + (alpha / r) B A,   A in R^(r x in), B in R^(out x r)
"""

from __future__ import annotations

import copy
import math
import re

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.baselines._copies import NoPrompt, sharing_copy, trained_dtype
from softprompt.baselines._layers import attention_parts, text_part, transformer_layers
from softprompt.surroundings import own_generators

_QUERY_AND_VALUE = (("query", "value"), ("q_proj", "v_proj"))
_TASK_TYPES = {"causal-lm": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM"}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class LoRA(NoPrompt):
    """Low-rank changes are trained in a copy that shares its other weights with the backbone. It needs the extra `lora`."""

    rank: int = Field(default=8, gt=0)
    """r, the rank of the changes."""
    alpha: float = Field(default=16, gt=0)
    """The scale of the change, which is divided by r, or by its root with `rank_stabilised`."""
    targets: str | tuple[str, ...] | None = None
    """The names of the layers, or "all-linear". The default is peft's choice for this kind of model, most often query and
    value; for a kind that peft does not know, such as vision transformers, it is query and value where they are found."""
    rank_stabilised: bool = False
    """Whether to divide by the root of r (Kalajdzievski 2023, arXiv 2312.03732)."""

    name = "lora"

    def prepare(self, backbone: Backbone, generator: torch.Generator) -> Backbone:
        model = _injected(self, backbone)
        for name, parameter in lora_parameters(model).items():
            parameter.data = parameter.data.to(trained_dtype(backbone.dtype))
            with torch.no_grad():
                if "lora_B" in name:
                    parameter.zero_()
                else:  # as in peft, drawn from our own source of randomness
                    bound = 1 / math.sqrt(parameter.shape[1])
                    drawn = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
                    parameter.copy_(drawn)
        return backbone.with_model(model)

    def learning_rate(self, spec: BackboneSpec) -> float:
        """Return the rate of the original on GPT-2 (2e-4), rounded up to what later work found good."""
        return 3e-4


def lora_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Return the trained tensors of a copy that `LoRA.prepare` made, by their names in it."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def _injected(method: LoRA, backbone: Backbone) -> PreTrainedModel:
    """Return a copy with low-rank layers, which alone require a gradient."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as LORA_TARGETS
    except ImportError as error:
        raise ValueError("LoRA needs the package peft: pip install 'softprompt[lora]'") from error
    targets = list(method.targets) if isinstance(method.targets, tuple) else method.targets
    unknown = backbone.model.config.model_type not in LORA_TARGETS
    if targets is None and unknown and backbone.spec.attention:
        targets = _query_and_value(backbone.model)
    text = text_part(backbone.model)  # a tower for images stays what it is
    config = LoraConfig(
        exclude_modules=None if text is None else rf"(?!{re.escape(text)}).*",
        r=method.rank,
        lora_alpha=method.alpha,  # type: ignore[arg-type]  # peft says int, and divides
        target_modules=targets,
        use_rslora=method.rank_stabilised,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.model.modules()),
        task_type=_TASK_TYPES.get(backbone.spec.family),
    )
    model = sharing_copy(backbone.model)
    # peft draws from the global generator; these values are drawn again later.
    with own_generators():
        try:
            inject_adapter_in_model(config, model)
        except ValueError as error:
            asked = "by default" if method.targets is None else f"for targets={method.targets!r}"
            raise ValueError(
                f'peft finds no layers {asked} in {backbone.name}: name them, as in targets=("query", "value"), or take '
                f'targets="all-linear" ({error})'
            ) from error
    return model


def _query_and_value(model: PreTrainedModel) -> list[str] | None:
    """Return the names of a model's query and value projections; None if they have no known names."""
    names = {
        name.rpartition(".")[2]
        for layer in transformer_layers(model)
        for part in attention_parts(layer)
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear)
    }
    return next((list(pair) for pair in _QUERY_AND_VALUE if names.issuperset(pair)), None)


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """Return a plain transformers model with the changes added to its weights, for `save_pretrained` and other tools.

    The given model stays as it is. Logits differ by rounding if the model is not float32.
    """
    from peft.tuners.lora import LoraLayer

    whole = copy.deepcopy(model).requires_grad_(False)
    for name, module in list(whole.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, module.get_base_layer())
    if hasattr(whole, "peft_config"):
        del whole.peft_config
    return whole
