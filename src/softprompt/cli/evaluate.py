"""softprompt evaluate: measure a saved prompt on rows with answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli._console import reporting
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
from softprompt.files import write_text

if TYPE_CHECKING:
    from softprompt.tuned import TunedPrompt


def evaluate(
    prompt: PromptDir,
    data: Annotated[
        str,
        typer.Option(
            help="Data to measure on: a built-in name, a file or a hub data set.", show_default=False
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(help="Which split to evaluate, e.g. test.", show_default="test; a file has none"),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate at most this many rows.", show_default=False)
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            help="Write the wrongly answered rows here, the confidently wrong ones first: .csv, .jsonl, .parquet or .html.",
            show_default=False,
        ),
    ] = None,
    encoding: Encoding = "utf-8",
    batch_size: BatchSize = 16,
    labels: Labels = None,
    backbone: BackboneName = None,
    dtype: Dtype = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure a saved prompt on data."""
    with reporting(as_json, debug) as report:
        from softprompt.cli._prediction_files import check_suffix
        from softprompt.cli._results import metrics_table, read_source, scores
        from softprompt.cli._wrong_rows import write_wrong_rows

        is_page = errors is not None and errors.suffix.lower() in (".html", ".htm")
        if errors is not None and not is_page:
            check_suffix(errors, "--errors")
        rows = read_source(data, split, "test", limit, encoding)
        tuned = open_prompt(prompt, backbone, dtype, device, labels)
        with report.progress("evaluated", len(rows)) as on_batch:
            answers: list[Any] = []
            kept = {} if errors is None else {"wrong_rows": partial(_wrong, tuned.encoder, answers)}
            metrics = tuned.evaluate(rows, batch_size=batch_size, on_batch=on_batch, metrics=kept)
        main = tuned.task.main_metric
        if errors is not None:
            if is_page:
                write_text(errors, _page(tuned, answers, rows, f"{prompt} on {data}", scores(main, metrics)))
            else:
                write_wrong_rows(errors, answers, rows)
            report.values["errors"] = str(errors)
        report.values.update(
            {
                "prompt": str(Path(prompt)),
                "data": data,
                "backbone": tuned.backbone.name,
                "precision": str(tuned.backbone.dtype).removeprefix("torch."),
                "main_metric": tuned.task.main_metric,
                "metrics": metrics,
            }
        )
        report.human.print(metrics_table({"": metrics}, f"{prompt} on {data}"))
        if errors is not None:
            report.human.print(f"{len(answers)} wrong rows are in {errors}", highlight=False, markup=False)
        report.human.print(scores(tuned.task.main_metric, metrics), highlight=False, markup=False)


def _page(
    tuned: TunedPrompt,
    found: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    name: str,
    score: str,
) -> str:
    from softprompt import store
    from softprompt.cli._error_page import error_page

    fields = [tuned.task.columns.get(field, field) for field in tuned.task.fields]
    facts = {"Method": tuned.method.name, "Backbone": store.shown_name(tuned.backbone.name), "Score": score}
    return error_page(name, found, rows, fields=fields, facts=facts)


def _wrong(
    encoder: Any, found: list[Any], predictions: Sequence[Any], rows: Sequence[Mapping[str, Any]]
) -> float:
    """The number of wrong rows, which are left in `found`."""
    from softprompt.cli._wrong_rows import wrong_rows

    found += wrong_rows(encoder, predictions, rows)
    return len(found)
