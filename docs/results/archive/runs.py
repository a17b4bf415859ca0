"""Archive, not maintained: the file of finished runs that the `*_runs` of commit 3cfa151 filled, several processes together."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from softprompt.records.shared_file import SharedFile
from softprompt.studies.environment import commit

Run = dict[str, Any]


class Study(SharedFile):
    """Runs by name. One that is in the file is not run again; one that another process is at is left to it."""

    def run(self, name: str, work: Callable[..., Run], *args: Any, **kwargs: Any) -> None:
        """Do `work(*args, **kwargs)` and keep what it gives, unless it is kept, or being done, already."""
        with self.claim(name) as mine:
            if not mine:
                return
            wall, cpu = time.perf_counter(), time.process_time()
            result = work(*args, **kwargs)
            took = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
            made = {key: round(seconds, 1) for key, seconds in took.items()} | {"commit": commit()}
            self.keep(name, result | made)
        print(name, {k: v for k, v in self.runs[name].items() if not isinstance(v, dict | list)}, flush=True)
