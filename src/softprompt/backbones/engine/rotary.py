"""Rotary positions that change with the length of a pass, run without a memory of earlier passes.

transformers keeps the frequencies of the last pass on the module (`dynamic_rope_update`). On a view each pass has them for
itself, so that neither an earlier pass nor another thread changes them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class ChangingRotary:
    """Rotary positions that change with length.

    module  that computes them
    kind    of layers that they serve; None: all
    limit   longest sequence, in tokens, that has the frequencies of pretraining
    grows   whether each length beyond has its own frequencies (dynamic NTK), or all have the same (long rope)
    """

    module: nn.Module
    kind: str | None
    limit: int
    grows: bool


def changing_rotaries(model: nn.Module) -> list[ChangingRotary]:
    """The rotary positions of a model that change with length, as transformers marks them."""
    found: list[ChangingRotary] = []
    for part in model.modules():
        module: Any = part
        kinds = getattr(module, "rope_type", None)
        named: dict[Any, Any] = kinds if isinstance(kinds, dict) else {None: kinds}
        for kind, rope in named.items():
            if not isinstance(rope, str) or not (rope == "longrope" or "dynamic" in rope):
                continue
            parameters: Any = module.config.rope_parameters
            parameters = parameters if kind is None else parameters[kind]
            limit = (
                parameters["original_max_position_embeddings"]
                if rope == "longrope"
                else module.original_max_seq_len
            )
            found.append(ChangingRotary(module, kind, int(limit), grows=rope != "longrope"))
    return found


def make_forgetful(view: nn.Module) -> None:
    """Let the rotary modules of a view compute each pass as if it were their first."""
    of_module: dict[nn.Module, list[ChangingRotary]] = {}
    for rotary in changing_rotaries(view):
        of_module.setdefault(rotary.module, []).append(rotary)
    for module, rotaries in of_module.items():
        # An instance attribute hides the class's forward.
        module.forward = partial(_afresh, module, rotaries)


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it changes a module, which would be compiled as a constant
def _afresh(module: nn.Module, rotaries: list[ChangingRotary], *args: Any, **kwargs: Any) -> Any:
    """The forward of a copy of the module that shares its tensors and has seen no pass.

    module    of the view
    rotaries  whose frequencies it computes
    """
    own: Any = copy.copy(module)
    own.__dict__["_buffers"] = dict(module._buffers)
    for rotary in rotaries:
        prefix = "" if rotary.kind is None else f"{rotary.kind}_"
        frequencies = getattr(own, f"{prefix}inv_freq")
        original = getattr(own, f"{prefix}original_inv_freq").to(frequencies.device)
        # transformers writes long rope's frequencies into the tensor, which the user's model has too.
        own.register_buffer(f"{prefix}inv_freq", original.clone(), persistent=False)
        if rotary.grows:
            setattr(own, f"{prefix}max_seq_len_cached", rotary.limit)
    return type(module).forward(own, *args, **kwargs)
