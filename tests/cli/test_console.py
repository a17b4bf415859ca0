"""What a command prints: control characters of a text are shown and not obeyed."""

from __future__ import annotations

import io

import pytest
import typer
from rich.table import Table
from rich.text import Text

from softprompt.cli._console import SafeConsole, reporting

EVIL = "good\x1b]0;owned\x07 film \x1b[2K\x9b31m\u202etxt\rworse"


def test_escape_codes_in_texts_are_shown_as_escapes() -> None:
    stream = io.StringIO()
    console = SafeConsole(file=stream, width=200, force_terminal=True, color_system="truecolor")
    table = Table("input")
    table.add_row(Text(EVIL))
    console.print(table)
    console.print(Text(EVIL, style="bold red"), soft_wrap=True)
    console.print(f"plain {EVIL}", markup=False, highlight=False)
    printed = stream.getvalue()
    for code in ("\x1b]0", "\x07", "\x1b[2K", "\x9b", "\u202e", "\r"):
        assert code not in printed
    assert printed.count(r"good\x1b]0;owned") == 3
    assert "\x1b[1;31m" in printed  # our own colours are as they were


def test_warnings_and_errors_are_printed_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with reporting(False, False) as report:
            report.warn(EVIL)
            raise ValueError(EVIL)

    with pytest.raises(typer.Exit):
        fail()
    printed = capsys.readouterr().err
    assert printed.count(r"\x1b]0;owned") == 2
    assert "\x1b" not in printed
