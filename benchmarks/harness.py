"""Paired measurements: all sides do the same work, in turns, in one process; their medians are compared."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table

MIB = 2**20
COLUMNS = ("case", "ours", "peer", "ratio", "unit", "spread of ours", "spread of peer")

Side = TypeVar("Side", bound=Hashable)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Row:
    """One line of a table.

    ours, peer        in `unit`; None where a side was not measured, or ran out of GPU memory
    higher_is_better  throughput; else time or memory
    extra             whatever else is worth keeping, as JSON
    """

    case: str
    ours: float | None
    peer: float | None
    unit: str
    higher_is_better: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How much better ours is: peer / ours for time and memory, ours / peer for throughput."""
        if self.ours is None or self.peer is None:
            return None
        return self.ours / self.peer if self.higher_is_better else self.peer / self.ours

    def as_dict(self) -> dict[str, Any]:
        values = {"ours": self.ours, "peer": self.peer, "ratio": self.ratio}
        return {"case": self.case, **values, "unit": self.unit, **self.extra}


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """What all benchmarks can be told."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="fewer cases and repetitions: at most ten minutes")
    made.add_argument("--json", type=Path, metavar="FILE", help="write there, and a Markdown table beside it")
    made.add_argument("--tiny", action="store_true", help="a tiny random model: to try the benchmark out")
    made.add_argument("--only", default="", metavar="TEXT", help="only cases with TEXT in their name")
    return made


@dataclass(frozen=True)
class Setting:
    """What the command line asked for; a benchmark adds the sizes that follow from it."""

    quick: bool
    tiny: bool
    only: str

    @property
    def repetitions(self) -> int:
        return 1 if self.tiny else 3 if self.quick else 5

    def wants(self, case: str) -> bool:
        return self.only in case


@dataclass(frozen=True)
class DeviceSetting(Setting):
    """The same where a device can be chosen."""

    device: torch.device
    dtype: torch.dtype

    @property
    def facts(self) -> dict[str, str]:
        """What stands beside each figure."""
        return {"dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device)}


# --- time --------------------------------------------------------------------------------------------------


def interleaved(
    sides: Mapping[Side, Callable[[], Result]],
    repetitions: int,
    check: Callable[[Mapping[Side, Result]], None] | None = None,
    warm_ups: Mapping[Side, Callable[[], Result]] | None = None,
) -> dict[Side, list[float]]:
    """Seconds of every repetition of each side: one warm-up each, then all in turns.

    check     is given what the warm-ups returned, before anything is timed
    warm_ups  smaller steps of the same code, where the sides' own take minutes; none: the sides
    A side that runs out of GPU memory in its warm-up is left out: its list is empty.
    """
    warm: dict[Side, Result] = {}
    for name, warm_up in (warm_ups or sides).items():
        try:
            warm[name] = warm_up()
        except torch.OutOfMemoryError:
            continue
    if check is not None:
        check(warm)
    seconds: dict[Side, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name in warm:
            _synchronize()
            start = time.perf_counter()
            sides[name]()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def row_of_times(case: str, ours: Sequence[float], peer: Sequence[float] = (), **extra: Any) -> Row:
    """Medians of both sides in seconds; `peer` is empty where only ours was measured."""
    return Row(case, middle(ours), middle(peer), "s", extra={"spread": spreads(ours, peer), **extra})


def row_of_rates(
    case: str, work: float, unit: str, ours: Sequence[float], peer: Sequence[float], **extra: Any
) -> Row:
    """Work per second of both sides, from their seconds."""
    ours, peer = [work / s for s in ours], [work / s for s in peer]
    return Row(case, middle(ours), middle(peer), unit, True, {"spread": spreads(ours, peer), **extra})


def row_of_memory(case: str, ours: int | None, peer: int | None, **extra: Any) -> Row:
    """From bytes of both sides."""
    ours_mib, peer_mib = (None if value is None else value / MIB for value in (ours, peer))
    return Row(case, ours_mib, peer_mib, "MiB", extra=extra)


def middle(values: Sequence[float]) -> float | None:
    """The median; None of nothing."""
    return median(values) if values else None


def spreads(ours: Sequence[float], peer: Sequence[float]) -> dict[str, list[float] | None]:
    """Least and greatest value of each side."""
    ends = [[min(values), max(values)] if values else None for values in (ours, peer)]
    return dict(zip(("ours", "peer"), ends, strict=True))


# --- memory ------------------------------------------------------------------------------------------------


def measures_memory(device: torch.device) -> bool:
    """Whether `peak_extra_bytes` works here: on GPUs, and on the CPU under Linux."""
    return device.type == "cuda" or Path("/proc/self/clear_refs").exists()


def peak_extra_bytes(step: Callable[[], object], device: torch.device) -> int | None:
    """How far memory rises above where it stood while `step` runs; None if the GPU has not enough.

    On the CPU: of the whole process (high-water mark of the resident set), so give each side its own
    (`in_fresh_process`), and take care that weights and code were touched before.
    """
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        try:
            step()
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.max_memory_allocated(device) - before
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        # Freed memory that the C library still holds would be taken again unseen.
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark falls to what is resident now
    before = _status_bytes("VmRSS")
    step()
    return _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}: memory cannot be measured here")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a module's function, called in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


# --- report ------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpu": f"{_cpu_model()}, {torch.backends.cpu.get_cpu_capability()}",  # two CPUs may share a name
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in ("softprompt", "torch", "transformers", "peft")},
    }


def report(name: str, rows: Sequence[Row], argv: Sequence[str], json_path: Path | None) -> None:
    """Print a table; with a path, write the JSON there and the table as Markdown beside it."""
    described = {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "command": shlex.join(["python", "-m", f"benchmarks.{name}", *argv]),
        "machine": machine(),
    }
    table = Table(title=name)
    for column in COLUMNS[:-2]:  # the spreads would not fit into 80 columns
        table.add_column(column, justify="left" if column in ("case", "unit") else "right")
    for row in rows:
        table.add_row(*_cells(row)[:-2])
    Console().print(table)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        _write(json_path, json.dumps({**described, "rows": [row.as_dict() for row in rows]}, indent=1) + "\n")
        _write(json_path.with_suffix(".md"), _markdown(described, rows))


def _markdown(described: Mapping[str, Any], rows: Sequence[Row]) -> str:
    here = described["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in here["versions"].items())
    lines = [
        f"# {described['name']}",
        "",
        f"`{described['command']}`, {described['date']}, commit {described['commit']}.",
        f"{here['cpu']}, {here['cores']} cores, {here['torch_threads']} torch threads.",
        f"GPU: {here['gpu'] or 'none'}. {versions}. {here['system']}.",
        "Medians; spread: least and greatest. Ratio, how much better ours is: peer / ours for times and",
        "memory, ours / peer for rates.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "|".join("---" if column in ("case", "unit") else "---:" for column in COLUMNS) + "|",
        *("| " + " | ".join(_cells(row)) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    spread = row.extra.get("spread") or {}
    ends = [spread.get("ours"), spread.get("peer")]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}x"
    between = ["" if pair is None else f"{_number(pair[0])} to {_number(pair[1])}" for pair in ends]
    return [row.case, _number(row.ours), _number(row.peer), ratio, row.unit, *between]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, marked where tracked files differ from it; None outside of a checkout."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "../src", ".")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
