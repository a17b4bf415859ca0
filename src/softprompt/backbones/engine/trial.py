"""Trials: what a model can do is tried out on a few rows, not guessed from its name."""

from __future__ import annotations

import torch
from torch import Tensor

TRIAL_ERRORS = (
    TypeError,
    NotImplementedError,
    AttributeError,
    RuntimeError,
    ValueError,
    KeyError,
    IndexError,
)
"""What a model that cannot be run in a certain way may raise when it is."""


def disagreement(found: Tensor, expected: Tensor, dtype: torch.dtype, *, half: float) -> float | None:
    """The largest difference between two results, if it is more than rounding explains; else None.

    dtype  that the model computes in
    half   the tolerance in bfloat16 and float16, as a share of the largest expected number (1 at least). There the
           trial finds wrong attention; the test suite proves the rest
    """
    tolerance = {torch.float64: 1e-5, torch.float32: 1e-3}.get(dtype, half)  # norms may run in float32
    difference = (found - expected).abs().max().item()
    return None if difference <= tolerance * max(1.0, expected.abs().max().item()) else difference
