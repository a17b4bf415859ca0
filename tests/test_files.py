"""Files: written whole or not at all, under names that nobody can know before, and read within bounds."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from softprompt import files
from softprompt.files import put_in_place, read_bytes, replacing, sweep, write_bytes, write_text
from tests.processes import fork_server

posix = pytest.mark.skipif(sys.platform == "win32", reason="locks, links and pipes of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_is_forced_to_the_disk_before_it_has_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, forced = os.fsync, []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        forced.append(("folder" if is_folder else "file", (tmp_path / "a.txt").exists()))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "täglich")
    assert forced == [("file", False), ("folder", True)]
    assert (tmp_path / "a.txt").read_bytes() == "täglich".encode()
    forced.clear()
    (tmp_path / "part").write_bytes(b"x")
    (tmp_path / "a.txt").unlink()
    put_in_place(tmp_path / "part", tmp_path / "a.txt")
    assert forced == [("file", False), ("folder", True)]


def test_a_file_is_the_old_one_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever the process is killed, one of the two is there."""
    path = tmp_path / "file"
    write_text(path, "old")
    sync, seen = os.fsync, []

    def looked(descriptor: int) -> None:
        seen.append(path.read_text())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", looked)
    write_text(path, "a new text")
    assert seen == ["old", "a new text"]  # the file, then its folder
    assert path.read_text() == "a new text"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"could not write .*file: No space left.* is unchanged") as raised:
            write_text(path, "a new text")
    assert raised.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_no_temporary_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "a") as file:
        file.write(b"half" + "text")  # type: ignore[operator]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


@posix
def test_no_link_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "out").mkdir()
    for name in (".page.part", f".softprompt-{'0' * 16}.part"):
        (tmp_path / "out" / name).symlink_to(victim)
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "0" * 2 * count)  # if it could be guessed
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "out" / "page", "new")
    monkeypatch.undo()
    write_text(tmp_path / "out" / "page", "new")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "out" / "page").is_symlink()


def killed_writer(path: Path) -> None:
    with replacing(path):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@posix
def test_what_killed_writers_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    for _ in range(2):
        child = fork_server().Process(target=killed_writer, args=(tmp_path / "a",))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1  # the second removed what the first had left
    (tmp_path / ".mine.part").write_text("not ours")
    with replacing(tmp_path / "a") as file:
        assert names(tmp_path) == sorted([".mine.part", Path(file.name).name])
        write_bytes(tmp_path / "b", b"beside it")
        file.write(b"whole")
    assert names(tmp_path) == [".mine.part", "a", "b"]
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_without_locks_only_old_files_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "lock", lambda descriptor: None)
    old, new = (tmp_path / f".softprompt-{sign * 16}.part" for sign in "ab")
    for path in (old, new):
        path.write_bytes(b"")
    os.utime(old, (time.time() - 10 * 24 * 3600,) * 2)
    sweep(tmp_path)
    assert names(tmp_path) == [new.name]


def test_of_many_writers_of_one_file_each_writes_it_whole(tmp_path: Path) -> None:
    contents = [bytes([number]) * 10_000 for number in range(8)]

    def write(content: bytes) -> None:
        for _ in range(5):
            write_bytes(tmp_path / "a", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert names(tmp_path) == ["a"]


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "a", "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"has 1,099,511,627,776 bytes, expected at most 10"):
        read_bytes(tmp_path / "a", 10)
    write_bytes(tmp_path / "b", b"0123456789")
    assert read_bytes(tmp_path / "b", 10) == read_bytes(tmp_path / "b") == b"0123456789"


@posix
def test_devices_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=f"{name} is a device or a pipe, expected a regular file"):
            read_bytes(tmp_path / name, 10)
    with pytest.raises(IsADirectoryError):
        read_bytes(tmp_path)
