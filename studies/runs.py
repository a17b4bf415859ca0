"""A file of finished runs, which several processes may fill together."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from softprompt.files import write_text
from softprompt.studies.environment import commit

Run = dict[str, Any]


class Study:
    """Runs by name. One that is in the file is not run again; one that another process is at is left to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Run] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Take what the file holds by now."""
        if self.path.exists():
            self.runs = json.loads(self.path.read_text())

    def run(self, name: str, work: Callable[..., Run], *args: Any, **kwargs: Any) -> None:
        """Do `work(*args, **kwargs)` and keep what it gives, unless it is kept, or being done, already."""
        claims = self.path.with_suffix(".claims")
        claims.mkdir(exist_ok=True)
        try:
            # Free again when this process ends, however it ends.
            with FileLock(claims / name.replace("/", "--"), timeout=0):
                self.read()
                if name in self.runs:
                    return
                wall, cpu = time.perf_counter(), time.process_time()
                result = work(*args, **kwargs)
                took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
                made = {key: round(seconds, 1) for key, seconds in took.items()} | {"commit": commit()}
                self.keep(name, result | made)
        except Timeout:
            return
        print(name, {k: v for k, v in self.runs[name].items() if not isinstance(v, dict | list)}, flush=True)

    def keep(self, name: str, value: Run) -> None:
        """Put a value into the file, beside what others have put there."""
        with FileLock(self.path.with_suffix(".lock")):
            self.read()
            self.runs[name] = value
            write_text(self.path, json.dumps(self.runs, indent=1) + "\n")
