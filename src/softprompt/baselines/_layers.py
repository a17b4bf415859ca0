"""The layers of a model of transformers and the norm behind them, found by their structure."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from softprompt.backbones.base import BackboneSpec


def without_attention(spec: BackboneSpec) -> str | None:
    """Why what is placed by a model's layers is not defined on a backbone; None where it is."""
    return (
        None
        if spec.attention
        else "its layers are found by the attention in them, and this backbone's have none"
    )


def layer_lists(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """The outermost lists of layers that hold attention, by name: the encoder's, the decoder's.

    Raises ValueError where there are none.
    """
    found: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(attention_parts(layer) for layer in module):
            found[name] = module
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of layers with attention")
    return found


def transformer_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, encoder's and decoder's. Raises ValueError where there are none."""
    return [layer for layers in layer_lists(model).values() for layer in layers]


def last_layers(model: PreTrainedModel, count: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """The last layers (of an encoder-decoder: of its decoder) and the norm behind them, where there is one.

    Raises ValueError where there are fewer, none are found, or they share their weights as ALBERT's do.
    """
    name, layers = list(layer_lists(model).items())[-1]
    runs = getattr(model.config.get_text_config(), "num_hidden_layers", len(layers))
    if "decoder" not in name and runs != len(layers):
        raise ValueError(
            f"{type(model).__name__} runs {runs} layers with the weights of {len(layers)}: none can be trained by itself"
        )
    if count > len(layers):
        raise ValueError(f"{type(model).__name__} has {len(layers)} layers, {count} are to be trained")
    return list(layers[-count:]), _norms_behind(model, name)


def _norms_behind(model: PreTrainedModel, layers: str) -> list[nn.Module]:
    """Norms that stand beside the list of layers, or beside a module that holds it."""
    parts = layers.split(".")
    trunk = {id(module) for module in model.base_model.modules()}  # not those of a head over words
    holders = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    holders = [holder for holder in holders if id(holder) in trunk]
    return [
        module
        for holder in holders
        for name, module in holder.named_children()
        # Not those in front: BART's layernorm_embedding, CLIP's pre_layrnorm.
        if "Norm" in type(module).__name__ and "emb" not in name and not name.startswith("pre")
    ]


def attention_parts(layer: nn.Module) -> list[nn.Module]:
    """The outermost submodules that are called attention in one way or another and hold projections."""
    names: list[str] = []
    parts: list[nn.Module] = []
    for name, module in layer.named_modules():
        if "att" not in name.rpartition(".")[2].lower() or any(name.startswith(f"{n}.") for n in names):
            continue
        if projections(module):
            names.append(name)
            parts.append(module)
    return parts


def projections(module: nn.Module) -> list[nn.Module]:
    """The linear layers in a module."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]


def outputs_of(module: nn.Module) -> int:
    """Width of what a linear layer gives."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.nf)  # type: ignore[arg-type]
