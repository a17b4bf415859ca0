from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from softprompt.files import lock
from softprompt.store import folders, load, save
from tests.processes import fork_server
from tests.store.samples import sample

OLD, NEW = sample(notes={"which": "old"}), sample(notes={"which": "new"})

# Every call by which the writing touches the disk, and so every place where it can be cut off.
CALLS = [(os, "mkdir"), (os, "fsync"), (os, "rename"), (os, "rmdir"), (shutil, "rmtree")]


class Crash(BaseException):
    """The machine stops."""


def cut_off(
    monkeypatch: pytest.MonkeyPatch, at: int, error: Callable[[], BaseException], lasting: bool
) -> None:
    """Let the `at`-th call that touches the disk fail; with `lasting`, all later ones as well."""
    made = 0

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == at or (lasting and made > at):
                if kwargs.get("ignore_errors") and isinstance(error(), OSError):
                    return None
                raise error()
            return call(*args, **kwargs)

        return wrapped

    for module, name in CALLS:
        monkeypatch.setattr(module, name, wrap(getattr(module, name)))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    save(tmp_path / "mood", OLD)
    return tmp_path / "mood"


def test_an_existing_prompt_is_kept_unless_overwriting_is_asked_for(mood: Path) -> None:
    with pytest.raises(FileExistsError, match=r"already exists and holds README\.md.*overwrite=True"):
        save(mood, NEW)
    assert load(mood) == OLD
    save(mood, NEW, overwrite=True)
    assert load(mood) == NEW
    assert names(mood.parent) == ["mood"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", NEW)
    save(tmp_path / "a" / "b" / "c", NEW)
    assert load(tmp_path / "empty") == load(tmp_path / "a" / "b" / "c") == NEW


def test_overwriting_deletes_nothing_but_a_prompt(mood: Path) -> None:
    (mood / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"also holds thesis\.txt, which overwriting would delete"):
        save(mood, NEW, overwrite=True)
    assert load(mood) == OLD
    assert (mood / "thesis.txt").exists()


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file, where a folder is to be written"):
        save(tmp_path / "file", NEW, overwrite=True)
    with pytest.raises(OSError, match="could not write"):
        save(tmp_path / "file" / "below", NEW)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_link_to_a_prompt_stays_a_link(mood: Path) -> None:
    link = mood.parent / "link"
    link.symlink_to(mood)
    save(link, NEW, overwrite=True)
    assert link.is_symlink()
    assert load(mood) == load(link) == NEW


def test_a_relative_folder_is_written_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save("here", OLD)
    save("here", NEW, overwrite=True)
    assert load("here") == NEW
    assert "# here" in (tmp_path / "here" / "README.md").read_text()


def test_a_full_disk_is_reported_as_such_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(monkeypatch, at=2, error=lambda: OSError(errno.ENOSPC, "No space left on device"), lasting=False)
    with pytest.raises(
        OSError, match=r"could not write .*mood: No space left on device.*Free the disk"
    ) as raised:
        save(tmp_path / "mood", NEW)
    assert raised.value.errno == errno.ENOSPC
    assert names(tmp_path) == []


def test_a_read_only_place_is_reported_as_such_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(
        monkeypatch, at=2, error=lambda: PermissionError(errno.EACCES, "Permission denied"), lasting=False
    )
    with pytest.raises(PermissionError, match=r"Permission denied.*change the permissions"):
        save(tmp_path / "mood", NEW)
    assert names(tmp_path) == []


@pytest.mark.parametrize("at", range(1, 12))
def test_whichever_call_fails_the_old_prompt_stands_and_nothing_is_left_behind(
    mood: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patch:
        cut_off(patch, at, lambda: OSError(errno.EIO, "Input/output error"), lasting=False)
        expected, left = (
            NEW,
            {"mood", ".mood.previous"},
        )  # a clean-up that failed is made good by the next write
        try:
            save(mood, NEW, overwrite=True)
        except OSError:
            expected, left = OLD, {"mood"}
    assert load(mood) == expected
    assert {"mood"} <= set(names(mood.parent)) <= left


@pytest.mark.parametrize("at", range(1, 12))
def test_wherever_the_machine_stops_the_old_prompt_or_the_new_one_is_there_whole(
    mood: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    with monkeypatch.context() as patch:
        cut_off(patch, at, Crash, lasting=True)
        with contextlib.suppress(Crash):
            save(mood, NEW, overwrite=True)
    assert load(mood) in (OLD, NEW)
    save(mood, NEW, overwrite=True)
    assert load(mood) == NEW
    assert ".mood.previous" not in names(mood.parent)


def test_a_prompt_that_an_interrupted_overwrite_put_aside_is_read_and_put_back(
    mood: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mood.rename(mood.parent / ".mood.previous")
    assert load(mood) == OLD
    assert "what it held before is read from" in caplog.text
    with pytest.raises(FileExistsError):
        save(mood, NEW)
    assert names(mood.parent) == ["mood"]
    assert load(mood) == OLD


def killed_save(folder: Path) -> None:
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    save(folder, NEW, overwrite=True)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills a process")
def test_temporary_folders_of_killed_saves_are_removed_by_the_next_one(mood: Path) -> None:
    (mood.parent / ".mood.notes.tmp").mkdir()  # not ours
    for _ in range(2):
        child = fork_server().Process(target=killed_save, args=(mood,))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert len(names(mood.parent)) == 3  # each save removes what the one before it left
    save(mood, NEW, overwrite=True)
    assert names(mood.parent) == [".mood.notes.tmp", "mood"]


def test_of_savers_into_one_place_each_writes_it_whole_or_is_told_why_not(tmp_path: Path) -> None:
    refused: list[FileExistsError] = []

    def write(overwrite: bool) -> None:
        for _ in range(5):
            try:
                save(tmp_path / "mood", NEW, overwrite=overwrite)
            except FileExistsError as error:
                refused.append(error)

    threads = [threading.Thread(target=write, args=(overwrite,)) for overwrite in (True, False) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load(tmp_path / "mood") == NEW
    assert names(tmp_path) == ["mood"]
    assert refused
    assert all("already exists and holds" in str(error) for error in refused)


@pytest.mark.skipif(os.name == "nt", reason="there are no such locks")
def test_a_place_that_another_process_never_leaves_is_said(
    mood: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    descriptor = os.open(mood.parent, os.O_RDONLY)
    assert lock(descriptor)
    monkeypatch.setattr(folders, "_PATIENCE", 0.05)
    try:
        with pytest.raises(OSError, match="is locked by another process, which has been saving there"):
            save(mood, NEW, overwrite=True)
    finally:
        os.close(descriptor)
    assert load(mood) == OLD
