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


def words_disagree(found: Tensor, expected: Tensor, dtype: torch.dtype, *, half: float) -> float | None:
    """How far two results for the words to come differ, if it is more than rounding explains; else None.

    found     logits, (N, V)
    expected  logits, (N, V)
    dtype     that the model computes in
    half      the tolerance in bfloat16 and float16, as a share of the spread of a place's expected logits. Rounding takes
              some 0.03 of it, in all words together; a single word may be far off, so none is judged by itself there
    """
    if dtype in (torch.float32, torch.float64):
        return disagreement(*_log_shares(found, expected), dtype, half=half)
    difference, spread, size = (
        x.square().mean(-1).sqrt() for x in _parts(*_log_shares(found, expected), expected.float())
    )
    # Logits of size 100 are rounded to 1/2 in bfloat16, however near to each other they are (GPT-2).
    tolerance = half * spread.clamp_min(0.01) + torch.finfo(dtype).eps * size
    return None if bool((difference <= tolerance).all()) else difference.max().item()


def _log_shares(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each word, twice; 0 for words that both results exclude."""
    ours, theirs = ((x if x.dtype == torch.float64 else x.float()).log_softmax(-1) for x in (found, expected))
    excluded = (ours == theirs) & theirs.isinf()
    return ours.masked_fill(excluded, 0), theirs.masked_fill(excluded, 0)


def _parts(found: Tensor, expected: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The difference, the expected result about its mean, and its logits, (N, V) each."""
    return (
        found - expected,
        expected - expected.mean(-1, keepdim=True),
        logits.masked_fill(logits.isinf(), 0),
    )
