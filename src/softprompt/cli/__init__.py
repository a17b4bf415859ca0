"""The command line: one file per command. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli import (
    compare,
    evaluate,
    export,
    fetch,
    init,
    inspect,
    predict,
    report,
    serve,
    suggest,
    train,
)
from softprompt.version import __version__

__all__ = ["app"]

app = typer.Typer(
    name="softprompt",
    help="Tune small prompts for large frozen models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("init")(init.init)
app.command("suggest")(suggest.suggest)
app.command("fetch")(fetch.fetch)
app.command("train")(train.train)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("predict")(predict.predict)
app.command("report")(report.report)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("inspect")(inspect.inspect)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Tune small prompts for large frozen models."""
