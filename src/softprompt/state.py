"""The tensors of a prompt, a head and a backbone, by name."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

K = TypeVar("K", bound=Hashable)


def plain_name(name: str) -> str:
    """A parameter's name without the wrapping that `train_own` adds in a lower precision: the same in every precision."""
    return name.replace("parametrizations.", "").removesuffix(".original")


def trained_tensors(
    module: nn.Module, model: nn.Module, head: nn.Module | None = None
) -> dict[str, nn.Parameter]:
    """Parameters that require a gradient: `prompt.*`, `head.*`, and those of the backbone as `backbone.*`."""
    named = [("prompt", module), ("head", head), ("backbone", model)]
    return {
        f"{part}.{name}": p
        for part, owner in named
        if owner is not None
        for name, p in owner.named_parameters()
        if p.requires_grad
    }


def changed_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of a backbone that a method trains, as `backbone.*`. They are the ones that require a gradient."""
    return {f"backbone.{plain_name(name)}": p for name, p in model.named_parameters() if p.requires_grad}


def named_state(module: nn.Module, model: nn.Module, head: nn.Module | None) -> dict[str, Tensor]:
    """All tensors of the prompt as `prompt.*`, of the head as `head.*`, buffers included, and the `changed_weights`."""
    parts = [("prompt", module), ("head", head)]
    named = {
        f"{part}.{name}": tensor
        for part, owner in parts
        if owner is not None
        for name, tensor in owner.state_dict().items()
    }
    return named | {name: parameter.detach() for name, parameter in changed_weights(model).items()}


def load_state(state: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    """Copy one `named_state` into the tensors of another. Raises ValueError unless names and shapes are the same."""
    found, expected = ({name: tuple(t.shape) for name, t in side.items()} for side in (state, into))
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"start does not fit the method, task and backbone: its {name} is {found.get(name, 'missing')}, and here it "
                f"is {expected.get(name, 'missing')}; a prompt that was loaded from a folder can start only methods that "
                "fold nothing away when they save"
            )
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(state[name])


def copy_tensors(tensors: Mapping[K, Tensor], *, into: Mapping[K, Tensor]) -> None:
    """Copy tensors in place into those of the same key; keys that `tensors` lacks are left as they are."""
    with torch.no_grad():
        for key, tensor in tensors.items():
            into[key].copy_(tensor)
