"""axe-core, which finds what keeps people who hear or key their way through a page from using it.

The script (Mozilla Public License 2.0) is fetched from the npm registry, checked and cached, as built-in models are.
"""

from __future__ import annotations

from typing import Any

from softprompt.zoo.archives import Archive, read_members
from softprompt.zoo.cache import cache_dir
from softprompt.zoo.download import download
from tests.browser import Browser

AXE = Archive(
    registry="npm",
    package="axe-core",
    version="4.14.1",
    filename="axe-core-4.14.1.tgz",
    size=708405,
    sha256="e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745",
)


def axe_script() -> str:
    """The script. Raises FetchError where it is not in the cache and cannot be fetched."""
    archives, locks = (cache_dir() / name for name in ("archives", "locks"))
    for folder in (archives, locks):
        folder.mkdir(parents=True, exist_ok=True)
    target = download(
        AXE, archives / AXE.filename, locks / f"{AXE.filename}.lock", needed_by="the test", progress=False
    )
    [(_, content)] = read_members(target, "package/axe.min.js")
    return content.decode()


def violations(tab: Browser, script: str) -> list[str]:
    """What axe finds in the page as it stands now: rule, place and what is wrong."""
    tab.value(f"{script}; undefined")
    found: list[dict[str, Any]] = tab.value(
        "axe.run(document, {resultTypes: ['violations']}).then(found => found.violations.map(one =>"
        " ({rule: one.id, help: one.help, nodes: one.nodes.map(node => node.target.join(' ') + ': ' + node.failureSummary)})))",
        wait=True,
    )
    return [f"{one['rule']}: {one['help']}: {node}" for one in found for node in one["nodes"][:3]]
