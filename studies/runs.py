"""A file of finished runs, which several processes may fill together."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Run = dict[str, Any]


class Study:
    """Runs by name. One that is in the file is not run again; one that another process is at is left to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Run] = {}
        asked = ["git", "rev-parse", "--short", "HEAD"]
        self.commit = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Take what the file holds by now."""
        if self.path.exists():
            self.runs = json.loads(self.path.read_text())

    def run(self, name: str, work: Callable[..., Run], *args: Any, **kwargs: Any) -> None:
        """Do `work(*args, **kwargs)` and keep what it gives, unless it is kept, or being done, already."""
        with _held(self.path.with_suffix(".claims") / name.replace("/", "--"), wait=False) as mine:
            self.read()
            if not mine or name in self.runs:
                return
            started = time.perf_counter()
            result = work(*args, **kwargs)
            seconds = round(time.perf_counter() - started, 1)
            self.keep(name, result | {"wall_seconds": seconds, "commit": self.commit})
        print(name, {k: v for k, v in self.runs[name].items() if not isinstance(v, dict | list)}, flush=True)

    def keep(self, name: str, value: Run) -> None:
        """Put a value into the file, beside what others have put there."""
        with _held(self.path.with_suffix(".lock"), wait=True):
            self.read()
            self.runs[name] = value
            temporary = self.path.with_suffix(".part")
            temporary.write_text(json.dumps(self.runs, indent=1) + "\n")
            os.replace(temporary, self.path)


@contextmanager
def _held(file: Path, *, wait: bool) -> Iterator[bool]:
    """Whether this process has the lock `file`; it is free again when the process ends, however it ends."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
