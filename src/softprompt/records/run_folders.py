"""Runs with a folder each: which are claimed, how each ended, and whether its files are whole.

runs/ID/       a run
  config.yaml    the run's settings, every default filled in
  history.jsonl  a line for each optimizer step
  result.json    how it ended, written last, with checksums of itself and of what lies beside it: with it the run has ended
claims/ID.lock who is at a run: locked by a living process. The kernel frees the lock of a dead one, whatever the clock says
set-aside/     run folders that were damaged
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import yaml
from filelock import FileLock, Timeout

from softprompt.files import finite, parse_json, read_text, write_bytes, write_text
from softprompt.records.digests import file_digest, object_digest

Status = Literal["finished", "pruned", "diverged", "failed"]

# Settings that change a run's result by rounding at most.
_FREE = {
    "backbone": ("device",),
    "recipe": ("trackers", "checkpoint_every", "gradient_checkpointing"),
}


class NamedRun(Protocol):
    """A run to make: its name, which ends in `run_hash`, and its settings as plain values."""

    @property
    def id(self) -> str: ...

    @property
    def values(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `facts` is the content of its result.json."""

    status: Status
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def validation(self) -> float | None:
        """The main metric on validation rows; None if there is none."""
        metrics = self.facts.get("metrics", {}).get("validation", {})
        value = metrics.get(self.facts.get("main_metric"))
        return None if value is None else float(value)


def run_hash(values: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of the sha256 of all settings that a run's result depends on."""
    kept = {
        key: {k: v for k, v in value.items() if k not in _FREE[key]} if key in _FREE else value
        for key, value in values.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


class DamagedRun(ValueError):  # noqa: N818 - it reads as the statement it is
    """A run folder with damaged files."""


@dataclass(frozen=True)
class RunFolders:
    """The folders of runs, below `path`. Results never change, so those that were read are cached."""

    path: Path
    _ended: dict[str, Outcome] = field(default_factory=dict, repr=False)

    def run(self, run_id: str) -> Path:
        return self.path / "runs" / run_id

    def outcome(self, run_id: str) -> Outcome | None:
        """How a run ended; None if it has not, or if its folder is damaged (`check` says how)."""
        if run_id not in self._ended:
            try:
                found = self.check(run_id)
            except DamagedRun:
                return None
            if found is None:
                return None
            self._ended[run_id] = found
        return self._ended[run_id]

    def check(self, run_id: str) -> Outcome | None:
        """The same as `outcome`, but raises DamagedRun, which says what is wrong, for a damaged folder."""
        folder = self.run(run_id)
        if not folder.exists():
            return None
        config = folder / "config.yaml"
        if not config.exists() and not (folder / "result.json").exists():
            return None  # killed before its first file was written
        _check_config(config, run_id)
        if not (folder / "result.json").exists():
            _check_evaluations(folder / "evaluations.json")
            return None
        facts = _checked_facts(folder / "result.json")
        if facts.get("run") != run_id or facts.get("status") not in get_args(Status):
            raise DamagedRun(f"{folder / 'result.json'} is of {facts.get('run')!r}, not of this run")
        for file, digest in _written(facts, folder).items():
            _check_file(folder / file, digest)
        return Outcome(facts["status"], facts)

    def begin_run(self, run: NamedRun) -> None:
        """Write the settings of the run."""
        folder = self.run(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", as_yaml(run.values))

    def end(
        self, run_id: str, facts: Mapping[str, Any], history: Sequence[Mapping[str, Any]] = ()
    ) -> Outcome:
        """Write how a run ended, after its prompt if it keeps one. `facts` is plain JSON with "status"."""
        folder = self.run(run_id)
        lines = "".join(json.dumps(finite(record)) + "\n" for record in history)
        write_text(folder / "history.jsonl", lines)
        facts = {"run": run_id, **finite(facts), **_digests(folder)}
        text = json.dumps({**facts, "sha256": object_digest(facts)}, indent=1, ensure_ascii=False) + "\n"
        write_text(folder / "result.json", text)
        self._ended[run_id] = Outcome(facts["status"], json.loads(json.dumps(facts)))
        return self._ended[run_id]

    def take_in(self, run_id: str, files: Mapping[str, bytes]) -> Outcome:
        """Write a run that ended elsewhere, given its files by path in its folder; replaces the existing files.

        Raises DamagedRun if they are not the files of this run, whole.
        """
        folder = self.run(run_id)
        shutil.rmtree(folder, ignore_errors=True)
        for name in sorted(files, key=lambda name: name == "result.json"):  # last, as always
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / name, files[name])
        outcome = self.check(run_id)
        if outcome is None:
            raise DamagedRun(f"{run_id} came back without a result: it has {sorted(files)}")
        self._ended[run_id] = outcome
        return outcome

    def history(self, run_id: str) -> list[dict[str, Any]]:
        """The records of each optimizer step of a run that has ended."""
        file = self.run(run_id) / "history.jsonl"
        return (
            [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if file.exists()
            else []
        )

    def forget(self, run_id: str) -> None:
        """Delete the result of a failed run, so that it is made again."""
        self._ended.pop(run_id, None)
        (self.run(run_id) / "result.json").unlink(missing_ok=True)

    def set_aside(self, run_id: str) -> Path:
        """Move a damaged run folder to set-aside/; returns the new path."""
        place = self.path / "set-aside"
        place.mkdir(exist_ok=True)
        target = next(t for i in range(10**6) if not (t := place / f"{run_id}.{i}").exists())
        os.rename(self.run(run_id), target)
        return target

    @contextmanager
    def claim(self, run_id: str, *, wait: bool = False) -> Iterator[bool]:
        """Claim a run. Returns False if another living process has claimed it, unless `wait` waits for that to end."""
        lock = FileLock(self.path / "claims" / f"{run_id}.lock")
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def others_at_work(self, runs: Sequence[NamedRun]) -> int:
        """The number of runs that another process has claimed."""
        count = 0
        for run_id in {run.id for run in runs}:
            if (self.path / "claims" / f"{run_id}.lock").exists():
                with self.claim(run_id) as free:
                    count += not free
        return count


def as_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as the text of a YAML file."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, is a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


# Errors that a file of any content may cause before its shape is checked: YAML has dates, JSON has lists
# where a mapping is expected, and either can be nested too deeply.
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError, yaml.YAMLError)


def _check_config(config: Path, run_id: str) -> None:
    try:
        values = yaml.safe_load(read_text(config))
        found = run_hash(values)
    except _UNREADABLE as error:
        raise DamagedRun(f"{config} cannot be read: {error}") from error
    if not run_id.endswith(found):
        raise DamagedRun(f"{config} is of another run: its settings have the hash {found}")


def _check_evaluations(file: Path) -> None:
    """Check the evaluations of an unfinished run, which resumes from them."""
    try:
        known = parse_json(read_text(file))
        sound = all(isinstance(entry["step"], int) and "value" in entry for entry in known)
    except FileNotFoundError:
        return
    except _UNREADABLE as error:
        raise DamagedRun(f"{file} cannot be read: {error!r}") from error
    if not sound:
        raise DamagedRun(f"{file} is not what the run wrote: expected a step and a value in each entry")


def _checked_facts(file: Path) -> dict[str, Any]:
    try:
        facts = dict(parse_json(read_text(file)))
        wanted, found = facts.pop("sha256", None), object_digest(facts)
    except _UNREADABLE as error:
        raise DamagedRun(f"{file} cannot be read: {error}") from error
    if wanted != found:
        raise DamagedRun(f"{file} is not what the run wrote: its checksum is wrong")
    return facts


def _digests(folder: Path) -> dict[str, Any]:
    """Check the checksums of the files that a run leaves beside its result."""
    # Not of the model card: it is for people, who may write in it, and nothing reads it.
    prompt = {file.name: file_digest(file) for file in sorted((folder / "prompt").glob("prompt.*"))}
    return {
        "history_sha256": file_digest(folder / "history.jsonl"),
        **({"prompt_sha256": prompt} if prompt else {}),
    }


def _written(facts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The sha256 of each file that a result names, by path in the run's folder. Results of older versions name fewer files.

    A prompt that was taken away as a whole, to make room, is no damage.
    """
    history = {"history.jsonl": facts["history_sha256"]} if "history_sha256" in facts else {}
    prompt = facts.get("prompt_sha256", {}) if (folder / "prompt").exists() else {}
    return history | {f"prompt/{name}": digest for name, digest in prompt.items()}


def _check_file(file: Path, digest: str) -> None:
    try:
        found = file_digest(file)
    except OSError as error:
        raise DamagedRun(f"{file} cannot be read: {error}") from error
    if found != digest:
        raise DamagedRun(f"{file} is not what the run wrote: its sha256 is wrong")
