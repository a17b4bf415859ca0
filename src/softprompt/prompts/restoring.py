"""A saved module is built again, after a look at whether its tensors are those of its method on this backbone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from softprompt.backbones.base import BackboneSpec
from softprompt.prompts.base import Method, PromptModule
from softprompt.store.errors import PromptFileError


def restore(method: Method, spec: BackboneSpec, tensors: Mapping[str, Tensor], where: str) -> PromptModule:
    """The module that was saved as these tensors. where: the folder, for errors.

    Raises PromptFileError, naming the tensor, for one that is missing, is of another method, or has a shape or a dtype that
    the method's settings and the backbone do not allow.
    """
    length = getattr(method, "length", None)
    tokens = tensors.get("tokens")
    if tokens is not None and spec.image is None:
        rows = length if isinstance(length, int) else len(tokens) if tokens.dim() else 0
        if tuple(tokens.shape) not in ((rows, spec.width), (0, spec.width)) or not tokens.is_floating_point():
            raise PromptFileError(
                f"{where}: prompt.tokens is {_told(tokens)}, and {method.name} on {spec.name} needs float32"
                f" {(rows, spec.width)}: the file is damaged or was edited by hand"
            )
    try:
        module = method.restore(spec, tensors)
    except KeyError as error:
        names = [f"prompt.{name}" for name in sorted(tensors)]
        raise PromptFileError(f"{where}: tensor {error} is missing; it has {names}") from error
    except (ValueError, RuntimeError, TypeError, IndexError, AssertionError) as error:
        raise PromptFileError(
            f"{where}: the tensors are not those of {method.name} on {spec.name}: {error or type(error).__name__}"
        ) from error
    own = module.state_dict()
    for name in sorted(own.keys() | tensors.keys()):
        found, expected = _told(tensors.get(name)), _told(own.get(name))
        if found != expected:
            raise PromptFileError(
                f"{where}: prompt.{name} is {found}, and {method.name} on {spec.name} has {expected}: the file is damaged or"
                " was edited by hand"
            )
    if module.prefix_length and isinstance(length, int) and module.prefix_length != length:
        raise PromptFileError(
            f"{where}: prompt.rows.weight and prompt.frozen hold {module.prefix_length} positions, and the settings of"
            f" {method.name} say {length}"
        )
    return module


def _told(tensor: Tensor | None) -> str:
    if tensor is None:
        return "missing"
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
