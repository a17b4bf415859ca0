"""A trial of a vision tower when it is loaded: it is run as prompts will be, and compared with the plain model.

A tower is right if its rows are those of the model's own forward, one image at a time, and if its layers take rows in any
order and number, as a prompt among them needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softprompt.backbones.engine import TRIAL_ERRORS, disagreement
from softprompt.backbones.vision.tower import ImagePrompt, Tower

_PLAIN = ImagePrompt(None, 0, ())
_HALF = 0.1  # in bfloat16, as a share of the largest number


@torch.no_grad()
def check_tower(tower: Tower, name: str) -> None:
    """Raise ValueError, with the reason, for a vision model that cannot be run with prompts among its rows.

    tower  with the model's own attention
    """
    kind = type(tower.model).__name__
    who = name if name == kind else f"{name} ({kind})"
    channels = tower.convolution.in_channels
    if channels != 3:
        raise ValueError(
            f"{who} reads images of {channels} channels; softprompt prepares three, red, green and blue"
        )
    pixels = torch.rand(2, 3, *tower.size, generator=torch.Generator().manual_seed(0))
    pixels = pixels.to(tower.convolution.weight.device, tower.convolution.weight.dtype)
    try:
        reason = _difference(tower, pixels)
    except TRIAL_ERRORS as error:
        reason = f"it cannot be run layer by layer ({type(error).__name__}: {error})"
    if reason is not None:
        raise ValueError(
            f"{who} takes no prompts: {reason}. Take a vision transformer whose layers take rows in any order, such"
            " as ViT, DeiT, MSN, I-JEPA, DINOv2, CLIP's or SigLIP's"
        )


def _difference(tower: Tower, pixels: Tensor) -> str | None:
    rows = tower.embed(pixels)
    patches = (pixels.shape[-2] // tower.patch[0]) * (pixels.shape[-1] // tower.patch[1])
    if rows.shape[1] != tower.special + patches:
        return (
            f"an image of {patches} patches becomes {rows.shape[1]} rows, and {tower.special} of them are known to be"
            " something else"
        )
    dtype = rows.dtype
    expected, rows = _own(tower, pixels, rows)
    found, _ = tower.through(rows, _PLAIN, ())
    if disagreement(found, expected, dtype, half=_HALF) is not None:
        difference = disagreement(tower.after(found), expected, dtype, half=_HALF)
        if difference is not None:
            return f"its states differ by {difference:.2g} from those of its own forward"
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0)).to(rows.device)
    mixed, _ = tower.through(rows[:, order], _PLAIN, ())
    if disagreement(mixed, found[:, order], dtype, half=_HALF) is not None:
        return "its layers read where a row stands, and a prompt would move the patches"
    prompted, _ = tower.through(tower.insert(rows, rows[:1, -2:]), _PLAIN, ())
    return None if prompted.isfinite().all() else "its states with a prompt are not finite"


def _own(tower: Tower, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The states behind the last layer that the model's own forward gives for each image alone, (B, T, d), and the rows
    that they are of, (B, T, d)."""
    vision: Any = tower.vision
    if hasattr(
        vision.embeddings, "random_masking"
    ):  # MAE's, which keeps the first quarter if the noise rises
        noise = torch.arange(rows.shape[1] - 1, device=rows.device, dtype=rows.dtype)[None]
        own = torch.cat([vision(one[None], noise=noise).last_hidden_state for one in pixels])
        return own, rows[:, : own.shape[1]]
    return torch.cat([vision(one[None]).last_hidden_state for one in pixels]), rows
