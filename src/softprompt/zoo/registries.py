"""Addresses to download a package's file from, according to the configuration of pip, npm and apt.

No address is written here, so mirrors, private indexes, proxies and certificates that are configured for pip,
npm and apt hold here too.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit
from urllib.request import url2pathname

from softprompt.zoo.archives import Archive
from softprompt.zoo.web import WEB_ERRORS, Connection, fetch_text, shown

_JSON_INDEX = "application/vnd.pypi.simple.v1+json"
_TOOL_TIMEOUT = 60.0  # seconds for pip or npm to print their settings

# In a process of its own: pip's configuration has no public interface, and importing pip changes the process
# it is imported into. Environments without pip (uv makes such) have the wheel that ensurepip would install.
_PIP_PROBE = """
import json, sys
try:
    import pip
except ImportError:
    import ensurepip, pathlib
    sys.path += map(str, pathlib.Path(ensurepip.__file__).parent.glob("_bundled/pip-*.whl"))
from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI
configuration = Configuration(isolated=False)
configuration.load()
print(json.dumps({"index-url": PyPI.simple_url, "settings": list(configuration.items())}))
"""


@dataclass(frozen=True)
class PipSettings:
    """The part of pip's configuration that matters for a download."""

    indexes: tuple[str, ...]
    """Addresses of the simple indexes, the main one first; none with pip's no-index."""
    find_links: tuple[str, ...]
    """Folders (or file: addresses of folders) in which archives may lie."""
    connection: Connection
    """Certificate, proxy and timeout."""


def _output_of(command: list[str]) -> str:
    """Standard output of a command. Raises OSError with its message if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT, check=True)
    except subprocess.CalledProcessError as error:
        said = (error.stderr or "").strip().splitlines()
        raise OSError(f"{' '.join(command[:2])} failed: {said[-1] if said else error.returncode}") from None
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{' '.join(command[:2])} gave no answer in {error.timeout:.0f} s") from None
    return done.stdout


def _merge_pip_settings(items: list[tuple[str, Any]]) -> dict[str, str]:
    """pip's settings by option; as in pip a later section wins: global, download, then the environment."""
    flat: dict[str, str] = {}
    for key, value in items:  # newer pips group the settings by the file that they come from
        flat.update(value if isinstance(value, dict) else {key: value})
    merged: dict[str, str] = {}
    for section in ("global.", "download.", ":env:."):
        merged.update(
            {key.removeprefix(section): value for key, value in flat.items() if key.startswith(section)}
        )
    return merged


def pip_settings() -> PipSettings:
    """pip's settings: environment variables and configuration files, else its own defaults.

    Raises OSError if pip cannot be asked and PIP_INDEX_URL is not set.
    """
    try:
        # -P: a file of the working folder must not stand in for a module of the standard library.
        answer = json.loads(_output_of([sys.executable, "-P", "-c", _PIP_PROBE]))
    except (OSError, ValueError) as error:
        if not os.environ.get("PIP_INDEX_URL"):
            raise OSError(f"pip could not be asked for its index ({error}); set PIP_INDEX_URL") from None
        answer = {
            "index-url": os.environ["PIP_INDEX_URL"],
            "settings": [
                (f":env:.{key}", os.environ[f"PIP_{key.upper()}"])
                for key in ("cert", "proxy")
                if f"PIP_{key.upper()}" in os.environ
            ],
        }
    settings = _merge_pip_settings(answer["settings"])
    indexes = [settings.get("index-url", answer["index-url"]), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        indexes = []
    return PipSettings(
        indexes=tuple(indexes),
        find_links=tuple(settings.get("find-links", "").split()),
        connection=Connection(certificate=settings.get("cert"), proxy=settings.get("proxy")),
    )


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (link := dict(attrs).get("href")):
            self.links.append(link)


def _links(page: str) -> list[str]:
    """Addresses in a page of a simple index, in its JSON form (PEP 691) or its HTML form (PEP 503).

    Raises ValueError for JSON of another kind.
    """
    if page.lstrip().startswith("{"):
        try:
            return [str(file["url"]) for file in json.loads(page)["files"]]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(
                f"this is not a page of a package index: {type(error).__name__}: {error}"
            ) from error
    parser = _Links()
    parser.feed(page)
    return parser.links


def _filename_of(address: str) -> str:
    return unquote(urlsplit(address).path.rsplit("/", 1)[-1])


def _as_folder(place: str) -> Path:
    return Path(url2pathname(urlsplit(place).path)) if place.startswith("file:") else Path(place).expanduser()


def _pypi_addresses(archive: Archive, reasons: list[str]) -> Iterator[tuple[str, Connection]]:
    settings = pip_settings()
    for place in settings.find_links:
        if (file := _as_folder(place) / archive.filename).is_file():
            yield file.resolve().as_uri(), settings.connection
    if not settings.indexes:
        reasons.append("pip is configured to use no index (no-index)")
    project = re.sub(r"[-_.]+", "-", archive.package).lower()
    for index in settings.indexes:
        page = f"{index.rstrip('/')}/{project}/"
        if page.startswith("file:"):
            page += "index.html"
        try:
            links = _links(fetch_text(page, settings.connection, accept=f"{_JSON_INDEX}, text/html;q=0.1"))
        except (*WEB_ERRORS, ValueError, KeyError) as error:
            reasons.append(f"{shown(page)}: {error}")
            continue
        matching = [urljoin(page, link) for link in links if _filename_of(link) == archive.filename]
        if not matching:
            reasons.append(f"{shown(page)} does not list {archive.filename}")
        for address in matching:
            yield address, settings.connection


def _npm_settings() -> dict[str, Any]:
    """npm's settings with its defaults; without npm, those in its environment variables."""
    if npm := shutil.which("npm"):
        return dict(json.loads(_output_of([npm, "config", "list", "--json"])))
    variables = {key.lower(): value for key, value in os.environ.items() if value}
    keys = ("registry", "cafile", "https-proxy")
    return {key: variables.get(f"npm_config_{key.replace('-', '_')}") for key in keys}


def _npm_addresses(archive: Archive, reasons: list[str]) -> Iterator[tuple[str, Connection]]:
    settings = _npm_settings()
    scope = archive.package.split("/")[0]
    registry = settings.get(f"{scope}:registry") or settings.get("registry")
    if not registry:
        raise OSError(
            "npm was not found, so its registry is not known; install npm, or set NPM_CONFIG_REGISTRY"
        )
    connection = Connection(
        certificate=settings.get("cafile") or os.environ.get("NODE_EXTRA_CA_CERTS"),
        proxy=settings.get("https-proxy") or settings.get("proxy"),
    )
    page = f"{registry.rstrip('/')}/{quote(archive.package, safe='@')}"
    try:
        releases = json.loads(fetch_text(page, connection, accept="application/json"))["versions"]
        address = releases[archive.version]["dist"]["tarball"]
    except (*WEB_ERRORS, ValueError, KeyError) as error:
        reasons.append(f"{shown(page)}: {type(error).__name__} {error}")
        return
    yield address, connection


def _apt_setting(name: str) -> str | None:
    """An option of apt's configuration; None if it is not set."""
    words = shlex.split(_output_of(["apt-config", "shell", "VALUE", name]))  # VALUE='...', or nothing
    return words[0].removeprefix("VALUE=") or None if words else None


def _apt_addresses(archive: Archive, reasons: list[str]) -> Iterator[tuple[str, Connection]]:
    if not shutil.which("apt-get"):
        raise OSError("apt-get was not found: this file is in a Debian package")
    package = f"{archive.package}={archive.version}"
    answer = _output_of(["apt-get", "--print-uris", "--quiet", "download", package])
    connection = Connection(
        certificate=_apt_setting("Acquire::https::CaInfo"),
        proxy=_apt_setting("Acquire::https::Proxy") or _apt_setting("Acquire::http::Proxy"),
    )
    # 'ADDRESS' NAME SIZE SUM
    for line in answer.splitlines():
        address, name, *_ = [*shlex.split(line), "", ""]
        if name == archive.filename:
            yield address, connection
            return
    reasons.append(f"apt-get does not list {archive.filename} for {package}")


def addresses(archive: Archive, reasons: list[str]) -> Iterator[tuple[str, Connection]]:
    """Addresses that an archive can be downloaded from, best first, each with the connection to use.

    What went wrong on the way is appended to `reasons`. Raises nothing for a registry that cannot be reached.
    """
    find = {"pypi": _pypi_addresses, "npm": _npm_addresses, "apt": _apt_addresses}
    try:
        yield from find[archive.registry](archive, reasons)
    except (OSError, ValueError) as error:  # the tool is missing, or answered what we cannot read
        reasons.append(str(error))
