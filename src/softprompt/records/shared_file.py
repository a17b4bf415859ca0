"""Finished runs by name in one JSON file that several processes fill together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from softprompt.files import write_text
from softprompt.records.objects import Record, read_object


class SharedFile:
    """Runs by name. Each process reads the runs of the others before it makes a run or writes one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self.read()

    def read(self) -> None:
        """Read the current content of the file."""
        self.runs = read_object(self.path) or self.runs

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim a run. Returns False if it is in the file or another living process has claimed it."""
        claims = self.path.with_suffix(".claims")
        claims.mkdir(exist_ok=True)
        # The kernel frees the lock when this process ends, however it ends.
        lock = FileLock(claims / name.replace("/", "--"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            self.read()
            yield name not in self.runs
        finally:
            lock.release()

    def keep(self, name: str, value: Record) -> None:
        """Add a run to the file, beside those of other processes."""
        with FileLock(self.path.with_suffix(".lock")):
            self.read()
            self.runs[name] = value
            write_text(self.path, json.dumps(self.runs, indent=1) + "\n")
