"""The precision that a frozen backbone runs in. Prompts and optimizer state are float32 whatever it is."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16", "float16", "float64"]


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (GPUs, CPUs with avx512_bf16 or AMX), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu":
        able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") else torch.float32
    return torch.float32


def resolve_dtype(precision: Precision | torch.dtype, device: torch.device) -> torch.dtype:
    """A dtype from what the user wrote. Raises ValueError for an unknown name."""
    if isinstance(precision, torch.dtype):
        return precision
    if precision == "auto":
        return fastest_dtype(device)
    dtype = getattr(torch, precision, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"unknown precision {precision!r}: use auto, float32, bfloat16, float16 or float64")
    return dtype
