"""Output and end of a command: results, warnings, errors, Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from softprompt.errors import printable
from softprompt.files import finite

INTERRUPTED = 130  # exit code of a process that was ended by Ctrl-C: 128 + SIGINT


class SafeConsole(Console):
    """A console on which control characters of a text are seen and not obeyed: a row of a data set cannot rename the window,
    write to the clipboard or hide what stands before it."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            if not segment.control and (shown := printable(segment.text)) != segment.text:
                segment = Segment(shown, segment.style)
            yield segment


@dataclass(frozen=True)
class Report:
    """Where a command prints its results and notes.

    human   console for results: stdout, or stderr if stdout is reserved for JSON
    notes   console for notes and warnings: always stderr
    values  the content of the one JSON object
    """

    human: Console
    notes: Console
    values: dict[str, Any] = field(default_factory=dict)

    def note(self, message: str, style: str = "") -> None:
        """Print a line to stderr as it is, without reading brackets as mark-up."""
        self.notes.print(Text(message, style=style), soft_wrap=True)

    @contextlib.contextmanager
    def progress(self, done: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show on a terminal how many of `total` rows are done; the result is told the number so far.

        Without a terminal there is a line every half minute.
        """
        from softprompt.training.progress import Counting

        with Counting(self.notes, done, total) as counting:
            yield counting.reached

    def warn(self, message: str) -> None:
        """Print a warning to stderr, and list it under "warnings"."""
        self.note(f"warning: {message}", "yellow")
        self.values.setdefault("warnings", []).append(message)


@contextlib.contextmanager
def reporting(as_json: bool, debug: bool) -> Iterator[Report]:
    """Run the body of a command. An error becomes one message and exit code 1; Ctrl-C exits with code 130.

    as_json  everything that the block prints goes to stderr, and the report's values are written to stdout as JSON; an
             error is written as `{"error": {"type": ..., "message": ...}}`
    debug    errors keep their traceback. Unforeseen errors always do
    """
    stdout = sys.stdout
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a locale cannot show must not end the command.
            stream.reconfigure(errors="backslashreplace")
    notes = SafeConsole(stderr=True)
    report = Report(notes if as_json else SafeConsole(), notes)
    try:
        # Libraries print to stdout too.
        with (
            contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext(),
            _warnings_in(report),
        ):
            yield report
    except KeyboardInterrupt as interrupt:
        for note in getattr(interrupt, "__notes__", ["interrupted"]):
            report.note(note)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug or not isinstance(error, _expected()):
            raise
        message = _message(error)
        report.note(f"error: {message}", "bold red")
        if as_json:
            _write_json(report, stdout, {"error": {"type": type(error).__name__, "message": message}})
        _give_up_if_full(stdout)
        raise typer.Exit(1) from None
    if as_json:
        _write_json(report, stdout, report.values)


def _write_json(report: Report, stream: TextIO, values: Mapping[str, Any]) -> None:
    try:
        stream.write(json.dumps(finite(values), allow_nan=False) + "\n")
        stream.flush()
    except OSError as error:
        report.note(
            f"error: the result could not be written to stdout: {error.strerror or error}", "bold red"
        )
        _give_up_if_full(stream)
        raise typer.Exit(1) from None


def _give_up_if_full(stream: TextIO) -> None:
    """Drop output that a full disk or a closed pipe refused: Python would try again at exit and print its own error."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _warnings_in(report: Report) -> Iterator[None]:
    """Within the block the library's warnings become lines of the report; others are shown as Python shows them."""
    from softprompt.errors import SoftpromptWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", SoftpromptWarning)
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, SoftpromptWarning):
                report.warn(str(message))
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _expected() -> tuple[type[Exception], ...]:
    """Errors that are meant for the user: their messages say what was found, what was expected and what to do."""
    from softprompt.errors import CheckpointError, TrainingDiverged
    from softprompt.zoo import FetchError

    # ValueError: pydantic's ValidationError, PromptFileError and WrongBackboneError too.
    return ValueError, OSError, FetchError, CheckpointError, TrainingDiverged


def _message(error: Exception) -> str:
    from pydantic import ValidationError

    from softprompt.errors import explain

    said = explain(error) if isinstance(error, ValidationError) else str(error) or type(error).__name__
    return "\n".join([said, *getattr(error, "__notes__", [])])
