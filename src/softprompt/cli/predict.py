"""softprompt predict: print the answers of a saved prompt."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli._console import Report, reporting
from softprompt.cli._options import (
    AsJson,
    BackboneName,
    BatchSize,
    Debug,
    Device,
    Dtype,
    Encoding,
    Labels,
    PromptDir,
    open_prompt,
)
from softprompt.cli._prediction_files import check_suffix, write_predictions
from softprompt.data.image_folders import image_paths

if TYPE_CHECKING:
    from softprompt.tasks.base import Task


_SHOWN = 5  # labels that the table shows with their probabilities; --json has all of them


def predict(
    prompt: PromptDir,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            help="Texts, or image files and folders. Without any, or with -, the lines of stdin are read.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="Read rows from a file instead: .csv, .tsv, .jsonl, .json or .parquet.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Write the rows of --file with their predictions here: .csv, .jsonl or .parquet.",
            show_default=False,
        ),
    ] = None,
    encoding: Encoding = "utf-8",
    batch_size: BatchSize = 16,
    labels: Labels = None,
    generation: Annotated[
        list[str] | None,
        typer.Option(
            "--generation",
            "-g",
            help="An option of text generation, as in do_sample=true, temperature=0.7, seed=1, num_beams=4,"
            " max_new_tokens=50. May be repeated.",
            metavar="KEY=VALUE",
            show_default=False,
        ),
    ] = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(
            help="A text that the answer may be: give two or more, and the most probable one is the answer.",
            show_default=False,
        ),
    ] = None,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print what a saved prompt answers: label and probabilities, or the generated text."""
    with reporting(as_json, debug) as report:
        if texts and file is not None:
            raise ValueError("give either texts or --file, not both")
        if output is not None:
            if file is None:
                raise ValueError("--output needs rows: give them with --file")
            if output.resolve() == file.resolve():
                raise ValueError(f"--output is {file}, the file that is read: give another name")
            check_suffix(output)
        options = _options(generation)
        words = [] if file is not None else _lines() if not texts or texts == ["-"] else texts
        inputs: Sequence[Any] = words if file is None else _rows(file, encoding)
        tuned = open_prompt(prompt, backbone, dtype, device, labels)
        if options is not None or choice:
            tuned = tuned.with_task(tuned.task.answering(options, choice or None))
        if file is None and len(tuned.task.fields) != 1:
            raise ValueError(
                f"the template needs the columns {list(tuned.task.fields)}, and a text has none: "
                "give rows with --file"
            )
        if file is None and tuned.task.about_images:
            inputs = image_paths(words)
        with report.progress("predicted", len(inputs)) as on_batch:
            if output is None:
                predictions = tuned.predict(inputs, batch_size=batch_size, on_batch=on_batch)
            else:
                write_predictions(output, tuned, inputs, batch_size=batch_size, on_batch=on_batch)
        if output is None:
            _show(report, tuned.task, inputs, predictions)
            return
        report.values.update({"output": str(output), "rows": len(inputs)})
        report.human.print(f"{len(inputs)} rows are in {output}", highlight=False, markup=False)


def _options(given: Sequence[str] | None) -> dict[str, Any] | None:
    """Options of generation by name; None: none was given."""
    from softprompt.fitting.run_config import override

    return override({}, given) if given else None


def _rows(file: Path, encoding: str) -> Sequence[Any]:
    from softprompt.data import open_rows

    return open_rows(file, encoding=encoding)


def _lines() -> list[str]:
    lines = [line.removesuffix("\n") for line in sys.stdin]
    if not lines:
        raise ValueError("there are no lines on stdin: give texts, or rows with --file")
    return lines


def _show(report: Report, task: Task, inputs: Sequence[Any], predictions: Sequence[Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from softprompt.tasks import ClassPrediction, LabelsPrediction, SpanPrediction

    answered = "text" if task.outputs is None else "answer"
    table = Table("input", *(["label", "probabilities"] if task.label_words else [answered]))
    answers = []
    for value, prediction in zip(inputs, predictions, strict=True):
        shown = (
            value
            if isinstance(value, str)
            else " | ".join(_text(value[task.columns.get(n, n)]) for n in task.fields)
        )
        row: dict[str, Any] = {
            "input": value if isinstance(value, str) else {k: _text(v) for k, v in value.items()}
        }
        if isinstance(prediction, ClassPrediction):
            row |= {"label": prediction.label, "probabilities": prediction.probabilities}
            ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
            more = [f"and {len(ranked) - _SHOWN} more"] if len(ranked) > _SHOWN else []
            shares = [f"{label} {p:.3f}" for label, p in ranked[:_SHOWN]]
            cells = [prediction.label, "  ".join([*shares, *more])]
        elif isinstance(prediction, LabelsPrediction):
            row |= {"labels": list(prediction.labels), "probabilities": prediction.probabilities}
            ranked = sorted(prediction.probabilities.items(), key=lambda item: -item[1])
            cells = [", ".join(prediction.labels), "  ".join(f"{k} {p:.3f}" for k, p in ranked[:_SHOWN])]
        elif isinstance(prediction, str):
            row["text"] = prediction
            cells = [prediction]
        else:  # a number, tags, a span
            row["answer"] = asdict(prediction) if isinstance(prediction, SpanPrediction) else prediction
            cells = [" ".join(prediction) if isinstance(prediction, list) else str(prediction)]
        answers.append(row)
        # Text, not str: rich would take brackets for mark-up.
        table.add_row(*(Text(cell, overflow="fold") for cell in (shown, *cells)))
    report.values["predictions"] = answers
    report.human.print(table)


def _text(value: Any) -> str:
    if (
        isinstance(value, list) and value and isinstance(value[-1], Mapping)
    ):  # turns of a chat: what is asked last
        asked = [turn for turn in value if turn.get("role", turn.get("from")) not in ("assistant", "gpt")]
        last = (asked or value)[-1]
        return str(last.get("content", last.get("value", "")))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
