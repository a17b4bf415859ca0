"""Functions that find the layers of a transformers model, and the norm after them, by their structure."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from softprompt.backbones.base import BackboneSpec


def without_attention(spec: BackboneSpec) -> str | None:
    """Return why a method that is placed by layers is not defined on a backbone; None if it is defined."""
    return (
        None
        if spec.attention
        else "its layers are found by the attention in them, and this backbone's have none"
    )


def layer_lists(model: PreTrainedModel) -> dict[str, nn.ModuleList]:
    """Return the outermost lists of layers with attention by name, such as those of encoder and decoder.

    Raises ValueError if there are none.
    """
    found: dict[str, nn.ModuleList] = {}
    text = text_part(model)
    for name, module in model.named_modules():
        if text is not None and not name.startswith(text):
            continue
        if not isinstance(module, nn.ModuleList) or any(name.startswith(f"{outer}.") for outer in found):
            continue
        if len(module) and all(attention_parts(layer) for layer in module):
            found[name] = module
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of layers with attention")
    return found


def text_part(model: PreTrainedModel) -> str | None:
    """Return where the names of the text decoder begin in a model that reads images among text; None for other models.

    What adds to layers adds to the decoder: images are computed once, and stay what they are.
    """
    if not (hasattr(model.config, "vision_config") and model.can_generate()):
        return None
    decoder = model.get_decoder()
    return next(f"{name}." for name, module in model.named_modules() if module is decoder and name)


def transformer_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return all layers of a model, those of encoder and decoder. Raises ValueError if there are none."""
    return [layer for layers in layer_lists(model).values() for layer in layers]


def last_layers(model: PreTrainedModel, count: int) -> tuple[list[nn.Module], list[nn.Module]]:
    """Return the last layers (in an encoder-decoder those of the decoder) and the norms after them, if there are any.

    Raises ValueError if there are fewer layers, none are found, or they share their weights as in ALBERT.
    """
    name, layers = list(layer_lists(model).items())[-1]
    runs = getattr(model.config.get_text_config(), "num_hidden_layers", len(layers))
    if "decoder" not in name and runs != len(layers):
        raise ValueError(
            f"{type(model).__name__} runs {runs} layers with the weights of {len(layers)}: none can be trained alone"
        )
    if count > len(layers):
        raise ValueError(f"{type(model).__name__} has {len(layers)} layers, {count} are to be trained")
    return list(layers[-count:]), _norms_behind(model, name)


def _norms_behind(model: PreTrainedModel, layers: str) -> list[nn.Module]:
    """Return the norms that are siblings of the list of layers, or of a module that holds it."""
    parts = layers.split(".")
    trunk = {id(module) for module in model.base_model.modules()}  # without those of a head over words
    holders = [model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
    holders = [holder for holder in holders if id(holder) in trunk]
    return [
        module
        for holder in holders
        for name, module in holder.named_children()
        # Norms in front are left out: BART's layernorm_embedding, CLIP's pre_layrnorm.
        if "Norm" in type(module).__name__ and "emb" not in name and not name.startswith("pre")
    ]


def attention_parts(layer: nn.Module) -> list[nn.Module]:
    """Return the outermost submodules that have attention in their names and hold projections."""
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
    """Return the linear layers in a module."""
    return [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]


def outputs_of(module: nn.Module) -> int:
    """Return the number of outputs of a linear layer."""
    return int(module.out_features if isinstance(module, nn.Linear) else module.nf)  # type: ignore[arg-type]
