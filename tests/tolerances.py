"""Tolerances: how close two computations of the same value are to each other.

The same call on the same machine, for the same batch and with the same number of threads, is bit-identical: test it with `==`
or `torch.equal`. Computations that differ in any of these, or in the order of their sums, are equal up to rounding: test them
with `assert_equal_up_to_rounding`. `pytest --disturb N` shows which is which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

FLOAT64 = 1e-9
"""Relative to the largest value: room for sums of some thousand terms, and for what a few training steps make of it."""

FLOAT32 = 1e-5
"""Relative to the largest value. Heads and prompts are float32, whatever the backbone is."""

BFLOAT16 = 2e-2
"""Relative to the largest value, as measured: a number is rounded to three digits after every operation."""

_TOLERANCES = {torch.float64: FLOAT64, torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


def assert_equal_up_to_rounding(
    found: Any, expected: Any, precision: torch.dtype | None = None, *, scale: float | None = None
) -> None:
    """Two results of the same structure are the same, but for the last digits of their numbers.

    found, expected: tensors, numbers, dataclasses, mappings and sequences of them, however deep. Whatever is no floating point
        number must be equal.
    precision: what was computed in; else a tensor's dtype, the coarser of the two, and float32 for Python's numbers, which
        predictions and metrics are.
    scale: what the tolerance is relative to; else the largest value of a tensor, and of the numbers side by side in one
        dataclass, mapping or sequence.
    """
    _compare(found, expected, precision, scale, "the result")


def _compare(
    found: Any, expected: Any, precision: torch.dtype | None, scale: float | None, where: str
) -> None:
    if isinstance(expected, Tensor):
        assert isinstance(found, Tensor), f"{where}: {type(found).__name__}, not a tensor"
        _compare_tensors(found, expected, precision, scale, where)
    elif isinstance(expected, float):
        both = (torch.tensor(one, dtype=torch.float64) for one in (found, expected))
        _compare_tensors(*both, precision or torch.float32, scale, where)
    elif isinstance(expected, str | bytes) or not _parts(expected):
        assert found == expected, f"{where}: {found!r}, not {expected!r}"
    else:
        ours, theirs = _parts(found), _parts(expected)
        assert ours.keys() == theirs.keys(), f"{where}: it has {list(ours)}, not {list(theirs)}"
        numbers = [abs(one) for one in theirs.values() if isinstance(one, float) and math.isfinite(one)]
        beside = max(numbers, default=0.0) if scale is None else scale
        for name, one in theirs.items():
            inner = beside if isinstance(one, float) else scale
            _compare(ours[name], one, precision, inner, f"{where}, {name}")


def _parts(value: Any) -> dict[Any, Any]:
    """What it is made of, by name, key or place; nothing for what has no parts."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    return dict(enumerate(value)) if isinstance(value, Sequence) and not isinstance(value, str) else {}


def _compare_tensors(
    found: Tensor, expected: Tensor, precision: torch.dtype | None, scale: float | None, where: str
) -> None:
    if not expected.is_floating_point():
        assert torch.equal(found, expected), f"{where}: {found}, not {expected}"
        return
    dtypes = {found.dtype, expected.dtype} if precision is None else {precision}
    tolerance = max(_TOLERANCES[dtype] for dtype in dtypes)
    finite = expected.detach().double().abs()
    finite = finite[finite.isfinite()]
    largest = scale if scale is not None else finite.max().item() if finite.numel() else 0.0
    torch.testing.assert_close(
        found.detach().double(),
        expected.detach().double(),
        rtol=0,
        atol=tolerance * largest,
        equal_nan=True,
        msg=lambda told: f"{where}: {told}",
    )
