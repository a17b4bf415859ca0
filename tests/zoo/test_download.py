"""What a user relies on when a download goes wrong, against a registry on this machine."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import pytest

from softprompt.zoo import Archive, FetchError, web
from softprompt.zoo.download import download
from tests.zoo.registry_server import Registry, archive_of

CONTENT = bytes(range(256)) * 40  # 10,240 bytes


def fetch(archive: Archive, folder: Path) -> Path:
    target = folder / archive.filename
    return download(archive, target, folder / "lock", needed_by="little-words", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("html", [False, True])
def test_an_archive_is_found_in_the_index_that_pip_is_configured_with(
    registry: Registry, tmp_path: Path, html: bool
) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT, html=html)
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_a_server_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dripping:
        def __init__(self, size: int) -> None:
            self.size = size

        def read1(self, most: int) -> bytes:
            nonlocal clock
            clock += 10
            return b"x" * self.size

    clock = 0.0
    monkeypatch.setattr(web.time, "monotonic", lambda: clock)
    connection = web.Connection(timeout=60, slowest=1024)
    with pytest.raises(OSError, match="sent 6 bytes in 60 s, which is too slow"):
        list(web.chunks(Dripping(1), "https://example.org/a?token=1", connection, 100))
    assert clock == 60
    fast = web.chunks(Dripping(20_000), "https://example.org/a", connection, 100)
    assert sum(len(next(fast)) for _ in range(50)) == 1_000_000


def test_a_server_that_drips_its_headers_is_given_up() -> None:
    is_over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError), listening.accept()[0] as line:
            line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not is_over.wait(0.01):
                line.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=drip, daemon=True)
        server.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a?token=1"
        try:
            with pytest.raises(OSError, match=r"/a gave no complete answer in 0 s"):
                web.open_address(address, web.Connection(timeout=0.1), {})
        finally:
            is_over.set()
            server.join()


def test_an_archive_that_is_there_needs_no_network(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    (tmp_path / archive.filename).write_bytes(CONTENT)
    fetch(archive, tmp_path)
    assert registry.asked == []


def test_a_damaged_archive_is_replaced(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    (tmp_path / archive.filename).write_bytes(CONTENT[:-1] + b"?")
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_a_download_that_broke_off_is_continued_where_it_ended(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    registry.cut_after = [1000, 500]
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert registry.asked_for(archive.filename) == [None, "bytes=1000-", "bytes=1500-"]


def test_a_part_of_an_earlier_run_is_continued(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    part = tmp_path / f"{archive.filename}.part"
    part.write_bytes(CONTENT[:4000])
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert registry.asked_for(archive.filename) == ["bytes=4000-"]
    assert not part.exists()


def test_a_server_without_ranges_sends_the_whole_archive_again(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    registry.ranges = False
    registry.cut_after = [1000]
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


@pytest.mark.slow
@pytest.mark.parametrize("length", [4000, len(CONTENT), len(CONTENT) + 5])
def test_a_part_with_wrong_bytes_is_thrown_away(registry: Registry, tmp_path: Path, length: int) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    (tmp_path / f"{archive.filename}.part").write_bytes(b"?" * length)
    assert fetch(archive, tmp_path).read_bytes() == CONTENT


def test_wrong_bytes_from_the_server_are_refused_and_both_sums_named(
    registry: Registry, tmp_path: Path
) -> None:
    archive = archive_of(CONTENT)
    other = CONTENT[:-1] + b"?"
    registry.offer(archive, other)
    with pytest.raises(FetchError) as caught:
        fetch(archive, tmp_path)
    assert archive.sha256 in str(caught.value)
    assert archive_of(other).sha256 in str(caught.value)
    assert [path.name for path in tmp_path.glob("*.whl*")] == []
    assert registry.asked_for(archive.filename) == [None]


def test_a_server_that_sends_too_much_is_stopped(registry: Registry, tmp_path: Path) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT + b"more")
    with pytest.raises(FetchError, match="sha256"):
        fetch(archive, tmp_path)


def test_a_package_that_the_index_does_not_list_is_an_error_that_says_what_to_do(
    registry: Registry, tmp_path: Path
) -> None:
    archive = archive_of(CONTENT)
    with pytest.raises(FetchError) as caught:
        fetch(archive, tmp_path)
    message = str(caught.value)
    for part in ("little-words 1.0", archive.filename, "404", "pip config list", archive.sha256):
        assert part in message
    assert str(tmp_path / archive.filename) in message


def test_no_server_at_all_is_an_error_that_keeps_the_part(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(CONTENT)
    part = tmp_path / f"{archive.filename}.part"
    part.write_bytes(CONTENT[:4000])
    registry.server_close()  # the port is free again: connections are refused
    with pytest.raises(FetchError, match="little-words needs the file"):
        fetch(archive, tmp_path)
    assert part.read_bytes() == CONTENT[:4000]


def test_passwords_of_the_index_are_used_and_never_shown(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", registry.url.replace("//", "//someone:secret@") + "/simple")
    with pytest.raises(FetchError) as caught:
        fetch(archive_of(CONTENT), tmp_path)
    assert "secret" not in str(caught.value)
    assert registry.url in str(caught.value)


def test_an_archive_in_a_folder_of_find_links_needs_no_index(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(CONTENT)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / archive.filename).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
    assert registry.asked == []


def test_an_extra_index_is_asked_after_the_first(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = archive_of(CONTENT)
    registry.offer(archive, CONTENT)
    monkeypatch.setenv("PIP_INDEX_URL", f"{registry.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{registry.url}/simple")
    assert fetch(archive, tmp_path).read_bytes() == CONTENT
