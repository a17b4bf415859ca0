"""The software and device that a run was made with, and the memory that it took."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.version import __version__


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Peak bytes of this process in main memory and of its tensors on a GPU."""
    found: dict[str, Any] = {"host": _host_peak()}
    if device.type == "cuda":
        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def environment(backbone: Backbone) -> dict[str, Any]:
    """Versions and device that a result was made with."""
    device = backbone.device
    return {
        "softprompt": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "backbone": store.shown_name(backbone.name),
        "precision": str(backbone.dtype).removeprefix("torch."),
        "versions": store.library_versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def reset_peak(device: torch.device) -> dict[str, int]:
    """Reset the peak of memory; returns the bytes in use now, as host_before and device_before.

    host_before is missing on systems that keep the peak of the whole process, which a run may not exceed.
    """
    before = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before["device_before"] = torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        # glibc: freed memory that it still holds, of an earlier run, would be taken again unseen.
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts anew
        before["host_before"] = _host_peak()
    return before


def _host_peak() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        import resource  # no Windows has it

        # Of the process, runs before this one included; in bytes on macOS.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


@cache
def commit() -> str | None:
    """The commit of the checkout that softprompt runs from; None: it was installed from elsewhere, or git is missing."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        # Installed into a project's own .venv it lies in a checkout too, but in one of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        asked = [*git, "rev-parse", "--short", "HEAD"]
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def free_kept_memory() -> None:
    """Free the GPU memory that torch's allocator keeps, after a run that ran out of it."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
