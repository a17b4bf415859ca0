"""Requests over HTTP and to local files, with the certificate, proxy and credentials of pip or npm."""

import base64
import contextlib
import importlib.util
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

# urllib raises OSError (URLError is one) for the network and HTTPException for broken answers.
WEB_ERRORS = (OSError, HTTPException)


@dataclass(frozen=True)
class Connection:
    """How to reach a server."""

    certificate: str | None = None
    """File or folder of certificates to trust beside the system's."""
    proxy: str | None = None
    """Address of a proxy; None takes it from the environment (HTTPS_PROXY and related variables)."""
    timeout: float = 60.0
    """Seconds without data after which a request fails; an answer has to begin, with all its headers, in three times that."""
    slowest: int = 1024
    """Bytes per second that a server must send on average over each `timeout`; one that drips is given up."""


_PAGE = 256 * 2**20  # bytes; the lists of the largest packages of npm have some tens of millions


def _without_credentials(address: str) -> tuple[str, str | None]:
    """The address without `user:password@`, and the header with these credentials."""
    parts = urlsplit(address)
    if "@" not in parts.netloc:
        return address, None
    credentials, _, host = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {token}"


def shown(address: str) -> str:
    """The address for messages: without credentials and without a query."""
    return urlunsplit(urlsplit(_without_credentials(address)[0])._replace(query="", fragment=""))


def _trust(connection: Connection) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if connection.certificate is not None:
        place = Path(connection.certificate).expanduser()
        if place.is_dir():
            context.load_verify_locations(capath=place)
        else:
            context.load_verify_locations(cafile=place)
    elif importlib.util.find_spec("certifi") is not None:
        # Python as installed on macOS may trust no one; certifi is there wherever huggingface_hub is.
        import certifi

        context.load_verify_locations(cafile=certifi.where())
    return context


def open_address(address: str, connection: Connection, headers: dict[str, str]) -> Any:
    """The open response to a GET request, which the caller closes; also for file: addresses. Raises one of WEB_ERRORS."""
    bare, authorization = _without_credentials(address)
    # identity: a compressed answer would break both ranges and sums.
    request = urllib.request.Request(bare, headers={"Accept-Encoding": "identity", **headers})
    if authorization is not None:
        # Unredirected: a redirect may lead to another host, which must not learn the password.
        request.add_unredirected_header("Authorization", authorization)
    proxies = None if connection.proxy is None else {"http": connection.proxy, "https": connection.proxy}
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=_trust(connection))
    )
    try:
        return _begun(
            lambda: opener.open(request, timeout=connection.timeout), address, 3 * connection.timeout
        )
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection open
        raise


def _begun(opening: Callable[[], Any], address: str, seconds: float) -> Any:
    """What `opening` returns or raises. Raises OSError if that takes too long.

    urllib's timeout begins anew with each byte, so that a server that drips headers would never be given up. It waits in a
    thread of its own, which is left behind then and ends with its connection.
    """
    ended: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()
    is_given_up = Event()

    def work() -> None:
        try:
            ended.put((opening(), None))
        except Exception as error:  # raised again below
            ended.put((None, error))
        if is_given_up.is_set():
            close_late()

    def close_late() -> None:
        with contextlib.suppress(Empty):
            answer, _ = ended.get_nowait()
            if answer is not None:
                answer.close()

    Thread(target=work, daemon=True).start()
    try:
        answer, error = ended.get(timeout=seconds)
    except BaseException as interrupt:  # Ctrl-C too
        is_given_up.set()
        close_late()
        if not isinstance(interrupt, Empty):
            raise
        raise OSError(f"{shown(address)} gave no complete answer in {seconds:.0f} s") from None
    if error is not None:
        raise error
    return answer


def chunks(answer: Any, address: str, connection: Connection, size: int) -> Iterator[bytes]:
    """Yield what a server sends, at most `size` bytes at a time. Raises one of WEB_ERRORS, also if it sends too slowly."""
    began, received = time.monotonic(), 0
    while chunk := answer.read1(size):
        received += len(chunk)
        if (passed := time.monotonic() - began) >= connection.timeout:
            if received < passed * connection.slowest:
                raise OSError(f"{shown(address)} sent {received} bytes in {passed:.0f} s, which is too slow")
            began, received = time.monotonic(), 0
        yield chunk


def fetch_text(address: str, connection: Connection, *, accept: str) -> str:
    """The text at an address. Raises one of WEB_ERRORS."""
    with open_address(address, connection, {"Accept": accept}) as answer:
        content = bytearray()
        for chunk in chunks(answer, address, connection, 1 << 20):
            content += chunk
            if len(content) > _PAGE:
                raise OSError(
                    f"{shown(address)} sends more than {_PAGE:,} bytes, where a list of files is expected"
                )
    return content.decode("utf-8", errors="replace")
