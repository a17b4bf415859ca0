"""The methods' lines in the stubs (__init__.pyi) of softprompt and of its rooms, written from the catalogue.

    python -m docs.tools.method_stubs

A stub's lines above the mark are written by hand and left as they are.
"""

from __future__ import annotations

from pathlib import Path

import softprompt
from softprompt.catalogue import METHODS
from softprompt.files import write_text

PACKAGES = ("softprompt", "softprompt.prompts", "softprompt.baselines")
MARK = (
    "# isort: split\n# Methods, from catalogue.py: `python -m docs.tools.method_stubs` writes what follows.\n"
)


def stub(package: str) -> Path:
    return Path(softprompt.__file__).parents[1].joinpath(*package.split("."), "__init__.pyi")


def with_methods(text: str, package: str) -> str:
    """A package's stub with a line for each method of the catalogue that lies below the package."""
    places = sorted(place.split(":") for place in METHODS.values())
    lines = [
        f"from {module.removeprefix(package)} import {name} as {name}\n"
        for module, name in places
        if module.startswith(f"{package}.")
    ]
    return text.partition(MARK)[0] + MARK + "".join(lines)


def main() -> None:
    for package in PACKAGES:
        path = stub(package)
        write_text(path, with_methods(path.read_text(encoding="utf-8"), package))


if __name__ == "__main__":
    main()
